"""Stand-ins for a model's tensors and layers while a run of it is traced.

Tensors are copies, so that forward may write into them. A look-alike stands for each layer that is
traced as one op, wherever growth could put another in its place: code that still reaches the layer
itself reaches it in a way that growth would miss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from splitgrow.utils.module_slots import holders_in, put_in_place_
from splitgrow.utils.rollback import Undo
from splitgrow.utils.source_lines import place_of_error

Modules = Sequence[tuple[str, nn.Module]]
"""Modules by path."""


def clone(tensor: Tensor) -> Tensor:
    """A copy of a tensor with its values; a parameter's is one."""
    if isinstance(tensor, nn.Parameter) and type(tensor) is not nn.Parameter:
        return copy.deepcopy(tensor)  # quantized weights keep their scales in attributes
    cloned = tensor.detach().clone()
    return (
        nn.Parameter(cloned, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cloned
    )


def set_mode_(module: nn.Module, *, training: bool) -> None:
    """Sets the mode of one module. Its attributes must be restored afterwards."""
    own = module.__dict__
    if "training" in own:  # as an assignment would, without a search for tensors
        own["training"] = training
    else:
        module.training = training


class HeldCopy(NamedTuple):
    """A copy of a tensor in its place: the dictionary, the key there, the copy and its path."""

    store: dict[str, Any]
    key: str
    tensor: Tensor
    path: str


def use_copies_(
    modules: Modules,
    leaves: Container[nn.Module],
    copied: Callable[[str, Tensor], Tensor],
) -> list[HeldCopy]:
    """Lets forward write into copies; the originals are restored with the other attributes.

    A leaf runs in evaluation mode if at all, in which it writes into none of its tensors.

    Args:
        modules: The model's modules.
        leaves: Those that are traced as one op.
        copied: Makes a copy, given the path and the tensor.

    Returns:
        The copies.
    """
    found = []
    for name, module in modules:
        for store, key, tensor in tensors_held(module) if module not in leaves else ():
            path = f"{name}.{key}".removeprefix(".")
            store[key] = copied(path, tensor)
            found.append(HeldCopy(store, key, store[key], path))
    return found


def tensors_held(module: nn.Module) -> list[tuple[dict[str, Any], str, Tensor]]:
    """The tensors that a module holds itself, each with its dictionary and its name."""
    own = module.__dict__
    return [
        (store, key, tensor)
        for store in (own["_parameters"], own["_buffers"], own)
        for key, tensor in store.items()
        if isinstance(tensor, Tensor)
    ]


class Copies:
    """Copies of layers' tensors, made where forward uses one outside of the layer's own call.

    Args:
        owners: The paths of the model's tensors by their ids; learns those of the copies.
        copied: Makes a copy.
    """

    def __init__(self, owners: dict[int, str], copied: Callable[[Tensor], Tensor]) -> None:
        self._owners, self._copied = owners, copied
        self._originals = set(owners)
        self._made: dict[int, Tensor] = {}
        self.reached: set[str] = set()
        """The paths of the tensors that were used so."""

    def add(self, tensor: Tensor, path: str) -> None:
        """Learns another tensor of the model, by its path."""
        self._owners[id(tensor)] = path
        self._originals.add(id(tensor))

    def of(self, leaf: Any) -> Any:
        """The copy of one of the model's tensors; anything else as it is.

        Raises:
            RuntimeError: If it is a tensor that claims values and has none.
        """
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in self._originals:
            refuse_without_memory(leaf)
            return leaf
        key = id(leaf)
        if key not in self._made:
            self._made[key] = self._copied(leaf)
            self._owners[id(self._made[key])] = self._owners[key]
            self.reached.add(self._owners[key])
        return self._made[key]


def refuse_without_memory(*values: Any) -> None:
    """Checks that tensors have the values that they claim, since to read them would crash.

    Code that torch cannot see makes such a tensor of the memory of a fake one, at no address.

    Raises:
        RuntimeError: If one has none.
    """
    for value in values:
        if type(value) is Tensor and value.layout is torch.strided and not value.is_meta:
            with torch._C.DisableTorchFunction(), suppress(RuntimeError):  # noqa: SLF001
                # A tensor that torch.func wraps has no storage, and raises.
                empty = value.numel() and not value.data_ptr()
                if empty:
                    break
    else:
        return
    raise RuntimeError("a tensor was made of memory that has no values")


def stand_in_(model: nn.Module, stand_ins: Mapping[nn.Module, nn.Module], undo: Undo) -> None:
    """Puts look-alikes in the places where growth would put other layers."""
    holders = holders_in(model) if stand_ins else {}
    for layer, stand_in in stand_ins.items():
        put_in_place_(holders, layer, stand_in, undo)


def otherwise_reached(name: str, place: str) -> str:
    """Why a layer cannot grow that forward reached past its stand-in."""
    return (
        f"forward reaches it at {place} otherwise than as `{name}` (through a closure, a tuple, a "
        f"stored method or another object that holds it), where growth could not replace it; have "
        f"forward take it from its module's attribute, or from an nn.ModuleList or nn.ModuleDict"
    )


def told_apart(error: Exception) -> str:
    """Why layers cannot grow whose stand-ins make forward fail with this error."""
    place = place_of_error(error.__traceback__)
    return (
        f"forward tells its layers by what objects they are, and fails when another is in a "
        f"layer's place, as it would be after growth ({place}: {type(error).__name__}: {error}); "
        f"have it go by their names"
    )
