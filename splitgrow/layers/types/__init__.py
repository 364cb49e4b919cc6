"""The layer types that can grow, and how to teach splitgrow others."""

from splitgrow.layers.types import library_layers, torch_layers
from splitgrow.layers.types.registry import (
    BUILT_IN_TYPES,
    LAYER_TYPES,
    Along,
    LayerKind,
    Stock,
    TensorAxes,
)
from splitgrow.layers.types.subclasses import (
    entry_of,
    kind_of,
    kind_of_type,
    register_layer,
    sized_layers,
    unregister_layer,
)

BUILT_IN_TYPES.update(LAYER_TYPES)

__all__ = [
    "Along",
    "LayerKind",
    "Stock",
    "TensorAxes",
    "entry_of",
    "kind_of",
    "kind_of_type",
    "library_layers",
    "register_layer",
    "sized_layers",
    "torch_layers",
    "unregister_layer",
]
