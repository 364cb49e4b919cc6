"""The attributes of a grown layer, which stands in the place of the plain one.

It has those of a plain layer of its present size and no others, so code that keeps something on
every module, such as a counter, works here as well.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from splitgrow.errors import UnsupportedLayerError
from splitgrow.layers.composition import Composition
from splitgrow.layers.live_tensor import LiveTensor
from splitgrow.layers.tensor_sources import TensorSource
from splitgrow.utils.eager import is_eager

_NOTHING = object()
_TORCHS = frozenset(vars(nn.Module()))
_OWN = (nn.Parameter, Tensor, nn.Module)


def refuse(composition: Composition, what: str) -> NoReturn:
    """Refuses something that a plain layer could do and a grown one cannot.

    Raises:
        UnsupportedLayerError: Always.
    """
    ins, outs = composition.sizes
    raise UnsupportedLayerError(
        f"{what}: it is a {type(composition.original).__name__} ({ins} to {outs} channels) that "
        f"splitgrow has grown, whose tensors are those of its blocks. Change their values in "
        f"place, under torch.no_grad(); for anything else make the model plain with splitgrow.merge"
    )


class Guarded(dict[str, Any]):
    """The tensors of a grown layer itself; asking for one of its blocks' raises a clear error.

    Args:
        names: The names of the blocks' tensors.
        layer: The layer's type, in words.
    """

    def __init__(self, names: Iterable[str] = (), layer: str = "layer") -> None:
        super().__init__()
        self.names, self.layer = frozenset(names), layer

    def __missing__(self, name: str) -> NoReturn:
        self._refuse(name)
        raise KeyError(name)

    def __delitem__(self, name: str) -> None:
        if name not in self.keys():
            self._refuse(name)
        super().__delitem__(name)

    def __contains__(self, name: object) -> bool:
        found = super().__contains__(name)
        if not found and not torch.compiler.is_compiling():
            self._refuse(name)
        return found

    def _refuse(self, name: object) -> None:
        if name in self.names:
            raise UnsupportedLayerError(
                f"the {self.layer} has been grown by splitgrow, and its `{name}` is that of its "
                f"blocks, so nothing can take its place: no weight norm, spectral norm, pruning or "
                f"other parametrization. Make the model plain with splitgrow.merge and apply it to "
                f"that, once all growth is done"
            )


def tensor_names(composition: Composition) -> set[str]:
    """The names of the plain layer's parameters and buffers."""
    plain = composition.template
    known = composition.layer_type.tensors(composition.original)
    return {*plain._parameters, *plain._buffers, *known}  # noqa: SLF001


def answer(layer: nn.Module, composition: Composition, name: str) -> Any:
    """An attribute of the plain layer that a grown one stands for.

    Raises:
        AttributeError: If a plain layer has no such attribute.
    """
    original = composition.original
    if name in composition.layer_type.tensors(original):
        return tensor_of(composition, name)
    made = composition.layer_type.answers(layer).get(name)
    if made is not None:
        return made()
    own = vars(original)
    if name.startswith("_"):  # a method may call private ones
        function = inspect.getattr_static(type(original), name, None)
        if isinstance(function, types.FunctionType) and not name.startswith("__"):
            return types.MethodType(function, layer)
        users = name in own and name not in _TORCHS and name not in vars(composition.template)
        return own[name] if users else _missing(layer, name)
    if name in own:
        return _number(composition, name, own[name])
    if name in own["_parameters"] or name in own["_buffers"] or name in own["_modules"]:
        plain = vars(composition.template)
        if name in plain["_modules"]:
            return own["_modules"][name]
        if name in plain["_parameters"] or name in plain["_buffers"]:
            return tensor_of(composition, name)
        return _missing(layer, name)
    return _of_type(layer, composition, name)


def _of_type(layer: nn.Module, composition: Composition, name: str) -> Any:
    """An attribute that the plain layer's type defines; its methods work on the grown layer."""
    original = composition.original
    found = inspect.getattr_static(type(original), name, _NOTHING)
    if found is _NOTHING:
        return _missing(layer, name)
    if isinstance(found, types.FunctionType):
        return types.MethodType(found, layer)
    if isinstance(found, property):
        assert found.fget is not None
        return found.fget(layer)
    return getattr(original, name)


def _missing(layer: nn.Module, name: str) -> NoReturn:
    raise AttributeError(f"{type(layer).__name__!r} object has no attribute {name!r}")


def _number(composition: Composition, name: str, value: Any) -> Any:
    """A width or a shape, as the plain layer of this size has it."""
    numbers = value if isinstance(value, tuple) else (value,)
    whole = bool(numbers) and all(type(number) is int for number in numbers)
    if whole or ((value is None or type(value) is float) and _is_width(composition, name)):
        return vars(composition.template).get(name, value)
    return value


def tensor_of(composition: Composition, name: str, whole: Tensor | None = None) -> Any:
    """One of the plain layer's tensors; None if there is none of that name.

    Args:
        composition: The layer's blocks.
        name: The tensor's name.
        whole: The assembled tensor, if it is at hand.
    """
    entry, original = composition.layer_type, composition.original
    listed = name in entry.tensors(original)
    if listed and torch.compiler.is_compiling():
        return composition.assembled(name) if whole is None else whole
    source = TensorSource(composition, name)
    if next(source.owners(), None) is None or (
        listed and entry.merging.value(original, name) is None
    ):
        return None
    if not source.known or not _plainly(next(source.owners())):
        if whole is not None:
            return whole
        return _shown(composition, name) if listed else next(source.owners())
    return LiveTensor.of(source.start(whole), source, whole=True)


def _shown(composition: Composition, name: str) -> Tensor | None:
    """A tensor for a trace, which may want to know whose it is."""
    assembled = partial(composition.assembled, name)
    for mode in _modes():
        if hasattr(mode, "whole_of"):
            found: Tensor | None = mode.whole_of(composition.original, name, assembled)
            return found
    return assembled()


def _plainly(tensor: Tensor) -> bool:
    """Whether ops run on plain tensors, neither transformed nor traced for analysis."""
    own = any(type(mode).__module__.startswith("splitgrow.") for mode in _modes())
    return not own and (is_eager(tensor) or tensor.is_meta)


def _modes() -> list[Any]:
    found: list[Any] = torch.overrides._get_current_function_mode_stack()  # type: ignore[no-untyped-call]  # noqa: SLF001
    return found


def set_on_blocks(composition: Composition, name: str, value: Any) -> bool:
    """Sets an attribute of the plain layer on all blocks.

    Returns:
        Whether it is one of the plain layer's.

    Raises:
        UnsupportedLayerError: If it is a tensor or a width, which only growth can change.
    """
    original = composition.original
    if name in composition.layer_type.tensors(original) or name in vars(original)["_buffers"]:
        if name not in tensor_names(composition):
            return False
        if isinstance(value, LiveTensor) and value._source.stands_for(composition, name):  # noqa: SLF001
            return True  # layer.weight += x has changed the blocks already
        refuse(composition, f"the layer's `{name}` cannot be replaced")
    if name not in vars(original) or isinstance(value, _OWN):
        return False
    plain = composition.template
    if name not in vars(plain):
        return False
    if value == vars(plain)[name]:
        return True
    if _is_width(composition, name):
        refuse(composition, f"the layer's `{name}` cannot be set to {value!r}")
    for block in composition.modules:
        if name in vars(block):
            setattr(block, name, value)
    return True


def _is_width(composition: Composition, name: str) -> bool:
    """Whether an attribute has another value in a layer twice as wide."""
    entry, original, sizes = composition.layer_type, composition.original, composition.sizes
    wider = entry.merging.merged(original, (2 * sizes[0], 2 * sizes[1]), device="meta")
    return bool(vars(wider).get(name) != vars(composition.template).get(name))
