"""The layer types that can grow, and how to teach splitgrow others."""

from splitgrow.layers.types import library_layers, recurrent_layers, torch_layers
from splitgrow.layers.types.layer_type import (
    Along,
    LayerType,
    Merging,
    Nested,
    Norm,
    Signature,
    Stock,
    TensorAxes,
)
from splitgrow.layers.types.registry import BUILT_IN_TYPES, LAYER_TYPES
from splitgrow.layers.types.subclasses import (
    computes_as,
    known_layer_type,
    layer_type_of,
    layer_type_of_class,
    register_layer,
    sized_layers,
    unregister_layer,
)

BUILT_IN_TYPES.update(LAYER_TYPES)

__all__ = [
    "Along",
    "LayerType",
    "Merging",
    "Nested",
    "Norm",
    "Signature",
    "Stock",
    "TensorAxes",
    "computes_as",
    "known_layer_type",
    "layer_type_of",
    "layer_type_of_class",
    "library_layers",
    "recurrent_layers",
    "register_layer",
    "sized_layers",
    "torch_layers",
    "unregister_layer",
]
