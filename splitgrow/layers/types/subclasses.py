"""Which entry a module has: its type's own, or that of a type that it computes like."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from torch import nn

from splitgrow.errors import StructureChangedError, UnsupportedLayerError
from splitgrow.layers.types.alike import Alike, Same
from splitgrow.layers.types.layer_type import LayerType, Stock
from splitgrow.layers.types.parametrized_layers import is_parametrized, parametrized_layer
from splitgrow.layers.types.registry import (
    FOUND,
    LAYER_TYPES,
    add_layer_type,
    dotted_name,
    remove_layer_types,
)
from splitgrow.layers.types.structural_layers import structural_layer
from splitgrow.layers.types.structural_norms import structural_norm
from splitgrow.utils.wrappers import plain_type


def layer_type_of(module: Stock) -> LayerType | None:
    """The entry for a module's type, or None.

    A subclass matches if it changes nothing of how its base computes. One with a `forward` of its
    own is tried on random tensors: it matches if it computes a norm (`structural_norm`), or works
    on blocks as its base does (`structural_layer`).

    Example:
        >>> conv = nn.Conv2d(3, 8, 3)
        >>> layer_type_of(conv).sizes(conv)
        (3, 8)
        >>> layer_type_of(nn.ReLU()) is None
        True
    """
    found = layer_type_of_class(type(module))
    found = found or structural_norm(module) or structural_layer(module)
    return found if found is not None and found.covers(module) else None


def layer_type_of_class(layer: type[nn.Module]) -> LayerType | None:
    """The entry for a type, or None, whether or not it covers a module as it is set up."""
    try:
        return FOUND[layer]
    except KeyError:
        FOUND[layer] = _found(layer)
        return FOUND[layer]


def _found(layer: type[nn.Module]) -> LayerType | None:
    layer = plain_type(layer)
    exact = LAYER_TYPES.get(layer) or LAYER_TYPES.get(dotted_name(layer))
    if exact is not None:
        return exact
    if is_parametrized(layer):
        return parametrized_layer(layer_type_of_class(layer.__mro__[1]))
    for base in layer.__mro__[1:]:
        if base in LAYER_TYPES:
            plain = all(_computes_as(base, part) for part in _between(layer, base))
            return Same(LAYER_TYPES[base]) if plain else None
    return None


def _between(layer: type, base: type) -> list[type]:
    return [part for part in layer.__mro__ if part not in base.__mro__]


_HARMLESS = frozenset(
    ("__init__", "reset_parameters", "extra_repr", "__repr__", "__constants__", "_get_name")
)


def _computes_as(base: type, part: type) -> bool:
    """Whether a class adds nothing to a base class that could change its results."""
    for name, value in vars(part).items():
        changes = hasattr(base, name) and not name.startswith(("__doc__", "__module__"))
        harmless = name in _HARMLESS or name in {"__dict__", "__weakref__", "__annotations__"}
        harmless = harmless or (name.startswith("__") and not callable(value))
        if (changes and not harmless) or isinstance(value, property):
            return False
    return "__getattr__" not in vars(part) and "__call__" not in vars(part)


class Registered(Alike):
    """A type that a user says is a form of a stock type, which need not be one of its bases.

    Args:
        base: The entry of the stock type.
        like: The stock type.
        layer: The type, or its dotted name.
    """

    def __init__(
        self, base: LayerType, like: type[nn.Module], layer: type[nn.Module] | str
    ) -> None:
        super().__init__(base, (layer,))
        self.like = like
        self._found_fit: WeakSet[nn.Module] = WeakSet()

    def covers(self, module: Stock) -> bool:
        """As its base has it.

        Raises:
            UnsupportedLayerError: If the module lacks something that a form of the base has.
        """
        if module not in self._found_fit:
            unfit = self._unfit(module)
            if unfit:
                name = type(module).__name__
                raise UnsupportedLayerError(
                    f"{name} is registered as a form of {self.like.__name__}, but {unfit}: give "
                    f"it what {self.like.__name__} has, or take the registration back by "
                    f"splitgrow.unregister_layer({name})"
                )
            self._found_fit.add(module)
        return self.base.covers(module)

    def _unfit(self, module: Stock) -> str:
        """Names the attributes that a module lacks to be a form of the base; empty if none."""
        try:
            plain: Any = self.base.build(module, self.base.sizes(module), device="meta")
            names = self.base.tensors(module)
        except Exception as error:  # noqa: BLE001 - reading its attributes can raise anything
            return f"one could not be made like it ({type(error).__name__}: {error})"
        # Not read from the module: while torch.fx traces, the module answers for its tensors.
        held = {**vars(module), **module._parameters, **module._buffers}  # noqa: SLF001
        for name in names:
            if name not in held and hasattr(type(module), name):
                continue  # made anew for each call
            if name not in held:
                return f"it has no `{name}`"
            own, expected = held[name], getattr(plain, name)
            shapes = [None if t is None else tuple(t.shape) for t in (own, expected)]
            if shapes[0] != shapes[1]:
                return f"its `{name}` is {shapes[0]}, which would be {shapes[1]} there"
        return ""


def register_layer(
    layer: type[nn.Module] | str | LayerType, *, like: type[nn.Module] | None = None
) -> None:
    """Teaches splitgrow a layer type.

    Args:
        layer: A layer type, by itself or by its dotted name; or a whole `LayerType`.
        like: The stock type that it is a form of, one of its bases or not: it has the same tensors
            and numbers under the same names (checked where a model has one), its outputs are
            computed from the same inputs, and its outputs for two parts of its input channels add
            up to its output for all. A block may have no bias where the layer has one, so forward
            must take None for it. Needed unless `layer` is a `LayerType`.

    Raises:
        TypeError: If `layer` is neither or computes nothing, or `like` is not a type that can grow.
        ValueError: If the type is registered already, or the name is no dotted one.

    `unregister_layer` takes it back.

    Example:
        >>> import torch, splitgrow
        >>> from torch import nn
        >>> class Padded(nn.Conv1d):  # looks at the past only
        ...     def forward(self, x):
        ...         return super().forward(nn.functional.pad(x, (self.kernel_size[0] - 1, 0)))
        >>> splitgrow.register_layer(Padded, like=nn.Conv1d)
        >>> net = nn.Sequential(Padded(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 1, 1))
        >>> net = splitgrow.growable(net, torch.randn(1, 2, 8))
        >>> net.layers[0].growable
        True
    """
    if isinstance(layer, LayerType):
        if like is not None:
            raise TypeError("a LayerType says all there is to say; leave `like` out")
        for own in layer.layers:
            _check_type(own)
        if not layer.layers:
            raise ValueError(f"{type(layer).__name__}.layers names no layer type")
        add_layer_type(layer)
        return
    _check_type(layer)
    base = LAYER_TYPES.get(like) if isinstance(like, type) else None
    if base is None or not isinstance(like, type):
        raise TypeError(f"like must be a layer type that can grow, such as nn.Conv2d, got {like!r}")
    add_layer_type(Registered(base, like, layer))


def _check_type(layer: object) -> None:
    """Makes sure that something is a layer type or the name of one.

    Raises:
        TypeError: If it is not.
        ValueError: If it is a text that is no dotted name.
    """
    if isinstance(layer, str):
        if "." not in layer or not all(part.isidentifier() for part in layer.split(".")):
            raise ValueError(
                f"{layer!r} is no dotted name of a layer type, such as 'package.module.Layer'"
            )
    elif not isinstance(layer, type) or not issubclass(layer, nn.Module):
        raise TypeError(f"layer must be a module type, its dotted name or a LayerType: {layer!r}")
    elif layer.forward is nn.Module.forward:
        raise TypeError(f"{layer.__name__} has no forward, so that it computes nothing")


def unregister_layer(layer: type[nn.Module] | str | LayerType) -> None:
    """Removes a layer type that `register_layer` added.

    Later analyses do without it. A model with grown layers of the type does not run until the type
    is registered again; call `splitgrow.merge` before to make it a plain model.

    Args:
        layer: As it was given to `register_layer`.

    Raises:
        TypeError: If it is none of those.
        ValueError: If it was not registered, or is one of splitgrow's own types.

    Example:
        >>> import torch, splitgrow
        >>> class Shifted(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x.float())
        >>> splitgrow.register_layer(Shifted, like=torch.nn.Linear)
        >>> splitgrow.unregister_layer(Shifted)
        >>> net = torch.nn.Sequential(Shifted(2, 3), torch.nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> [layer.name for layer in net.layers if layer.growable]
        ['1']
    """
    if isinstance(layer, LayerType):
        remove_layer_types(layer.layers)
        return
    _check_type(layer)
    remove_layer_types((layer,))


def known_layer_type(module: nn.Module) -> LayerType:
    """The entry for a layer that had one when its model was analysed.

    Raises:
        StructureChangedError: If it has none: something has replaced it, or its type was
            unregistered.
    """
    found = layer_type_of(module)
    if found is None:
        raise StructureChangedError(
            f"a layer, or a block of a grown one, is a {type(module).__name__} "
            f"({type(module).__module__}), which splitgrow does not know. If the type was "
            f"registered once, register it again by splitgrow.register_layer. A tool that replaces "
            f"layers, for quantization or LoRA say, cannot take a grown one: make the model plain "
            f"first, with splitgrow.merge"
        )
    return found


def computes_as(module: nn.Module, types: tuple[type[nn.Module], ...]) -> bool:
    """Whether a layer is one of these types of torch, or computes as one does."""
    if type(module) in types:
        return True
    return isinstance(module, types) and type(layer_type_of(module)) is Same


def sized_layers() -> tuple[type[nn.Module], ...]:
    """The stock layer types whose width can be asked for."""
    return tuple(
        layer for layer, entry in LAYER_TYPES.items() if entry.sized and not isinstance(layer, str)
    )
