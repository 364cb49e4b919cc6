"""The table of layer types that can grow."""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

from torch import nn

from splitgrow.layers.types.layer_type import LayerType

LAYER_TYPES: dict[type[nn.Module] | str, LayerType] = {}
FOUND: WeakKeyDictionary[type[nn.Module], LayerType | None] = WeakKeyDictionary()
"""The entry found for each type that was looked up, for as long as the type exists."""


BUILT_IN_TYPES: dict[type[nn.Module] | str, LayerType] = {}
"""The layer types that splitgrow itself adds."""


def add_layer_type(entry: LayerType) -> LayerType:
    """Adds an entry for its layer types.

    Raises:
        ValueError: If one of the types has an entry already.
    """
    for layer in entry.layers:
        if layer in LAYER_TYPES:
            raise ValueError(
                f"{dotted_name(layer)} is registered already, by "
                f"{type(LAYER_TYPES[layer]).__name__}"
            )
    LAYER_TYPES.update(dict.fromkeys(entry.layers, entry))
    FOUND.clear()
    return entry


def remove_layer_types(layers: Iterable[type[nn.Module] | str]) -> None:
    """Removes the entries of layer types, all of them or none.

    Raises:
        ValueError: If one of them has none, or one of splitgrow's own.
    """
    for layer in layers:
        if layer in BUILT_IN_TYPES:
            raise ValueError(f"{dotted_name(layer)} is one of splitgrow's own layer types")
        if layer not in LAYER_TYPES:
            raise ValueError(f"{dotted_name(layer)} is not registered")
    for layer in layers:
        del LAYER_TYPES[layer]
    FOUND.clear()


def dotted_name(layer: type[nn.Module] | str) -> str:
    """The dotted name of a layer type."""
    return layer if isinstance(layer, str) else f"{layer.__module__}.{layer.__qualname__}"
