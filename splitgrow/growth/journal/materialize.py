"""Giving memory to tensors without values; the shapes in the checkpoint must be the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.errors import CheckpointError
from splitgrow.layers.fade import FadeIn
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.layers.tensor_holder import SplitTensor
from splitgrow.layers.types import TensorBlock, layer_type_of
from splitgrow.layers.types.tensor_layers import first_values
from splitgrow.utils.rollback import Undo
from splitgrow.utils.same_parameters import former_again_

Devices = Mapping[str, torch.device]
"""The devices of modules by path."""

EmptySlot = tuple[nn.Module, str]
"""The owner of a tensor: the module, and the tensor's name there."""


def empty_slots_of(model: nn.Module) -> Iterator[tuple[str, EmptySlot, Tensor]]:
    """All parameters and buffers by name, every name of each."""
    for path, module in model.named_modules(remove_duplicate=False):
        for store in (module._parameters, module._buffers):  # noqa: SLF001
            for name, tensor in store.items():
                if tensor is not None:
                    yield f"{path}.{name}" if path else name, (module, name), tensor


def devices_of(model: nn.Module) -> dict[str, torch.device]:
    """The device of each module that has values: that of its first tensor."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        first = next(chain(module.parameters(), module.buffers()), None)
        if first is not None and not first.is_meta:
            found[path] = first.device
    return found


def _place(places: Devices, path: str) -> torch.device | None:
    """The device of a module, or of the innermost one around it that is known."""
    while path and path not in places:
        path = path.rpartition(".")[0]
    return places.get(path)


def materialise_(
    model: nn.Module, like: Mapping[str, Any], undo: Undo, places: Devices | None = None
) -> None:
    """Gives memory to tensors on the meta device, if tensors of the same shapes will be loaded.

    Each goes to the device of the tensor before it, which is the original block's. A block keeps
    the dtype that its layer has here, and a tensor of an insertion gets the dtype to which torch
    converts those of its kind, as it copies them into this model.

    Args:
        model: The model.
        like: The tensors to load, by name.
        undo: Takes it back.
        places: The devices of modules that had values before.

    Raises:
        CheckpointError: If one is missing, or of another shape.
    """
    dtypes = _dtypes_of_insertions(model, like)
    unsaved = {name: value for name, value in _unsaved(model).items() if name not in like}
    like = {**like, **unsaved}

    def empty(name: str, tensor: Tensor, device: torch.device) -> Tensor:
        found = like.get(name)
        if not isinstance(found, Tensor) or found.shape != tensor.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else "missing"
            raise CheckpointError(
                f"`{name}` of the checkpoint is {shape}, by its journal {tuple(tensor.shape)}"
            )
        if (
            type(found) in {Tensor, nn.Parameter}
            and found.nbytes > found.untyped_storage().nbytes()
        ):
            raise CheckpointError(f"`{name}` of the checkpoint is one number at many places")
        if name in unsaved:
            return unsaved[name].to(device)
        return torch.zeros_like(found, dtype=dtypes.get(name, tensor.dtype), device=device)

    fill_meta_(model, empty, undo, places=places)


def _unsaved(model: nn.Module) -> dict[str, Tensor]:
    """The new parts of buffers that no state_dict has, as growth has made them, by name."""
    found = {}
    for path, split in model.named_modules():
        first = split.original if isinstance(split, SplitTensor) else None
        if isinstance(first, TensorBlock) and not first.persistent:
            for name, buffer in split.named_buffers():
                value = first_values(first.value, [*buffer.shape], first.use.role)
                found[f"{path}.{name}"] = value
    return found


def _dtypes_of_insertions(model: nn.Module, like: Mapping[str, Any]) -> dict[str, torch.dtype]:
    """The dtypes for the tensors of insertions, which were built without knowing any, by name.

    Torch converts the model's other tensors to the dtypes that they have here. So it converts those
    of an insertion likewise. The share of a fade keeps its own dtype in any model.
    """
    wrappers = [module for module in model.modules() if isinstance(module, InsertionWrapper)]
    parts = [w.part(item.name) for w in wrappers for item in w.inserted]
    inserted = {module for part in parts for module in part.modules()}
    converted: dict[torch.dtype, torch.dtype] = {}
    dtypes: dict[str, torch.dtype] = {}
    for name, (module, _), tensor in empty_slots_of(model):
        found = like.get(name)
        if module not in inserted and isinstance(found, Tensor) and tensor.is_floating_point():
            converted.setdefault(found.dtype, tensor.dtype)
    for name, (module, _), _tensor in empty_slots_of(model):
        found = like.get(name)
        if module in inserted and isinstance(found, Tensor) and not isinstance(module, FadeIn):
            dtypes[name] = converted.get(found.dtype, found.dtype)
    return dtypes


def fill_meta_(
    model: nn.Module,
    value: Callable[[str, Tensor, torch.device], Tensor],
    undo: Undo,
    device: torch.device | None = None,
    places: Devices | None = None,
) -> None:
    """Replaces tensors on the meta device by tensors with values.

    Args:
        model: The model.
        value: Makes one, given its name, the tensor without values, and the device.
        undo: Takes it back.
        device: Their device; None for the device of the tensor before it.
        places: The devices of modules that had values before, whose tensors go there again.
    """
    made: dict[int, Tensor] = {}
    changed: dict[nn.Module, None] = {}
    here = device or torch.device("cpu")
    for name, (module, own), tensor in [*empty_slots_of(model)]:
        if not tensor.is_meta:
            here = device or tensor.device
            continue
        if id(tensor) not in made:
            there = _place(places or {}, name.rpartition(".")[0])
            filled = value(name, tensor, there or here)
            if isinstance(tensor, nn.Parameter):
                filled = _parameter(name, filled, trains=tensor.requires_grad)
                filled = former_again_(filled, tensor, undo)
            made[id(tensor)] = filled
        store: Any = module._parameters if own in module._parameters else module._buffers  # noqa: SLF001
        undo.on_failure(partial(store.__setitem__, own, tensor))
        store[own] = made[id(tensor)]
        changed[module] = None
    for module in changed:
        entry = layer_type_of(module)
        if entry is not None:  # torch's recurrent layers have lists of their weights, too
            undo.keep(vars(module))
            entry.merging.given(module)


def _parameter(name: str, tensor: Tensor, *, trains: bool) -> nn.Parameter:
    if trains and not (tensor.is_floating_point() or tensor.is_complex()):
        raise CheckpointError(f"`{name}` of the checkpoint holds {tensor.dtype}, and cannot train")
    return nn.Parameter(tensor, requires_grad=trains)
