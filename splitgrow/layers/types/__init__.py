"""The layer types that can grow, and how to teach splitgrow others."""

from splitgrow.layers.types import library_layers, recurrent_layers, tensor_layers, torch_layers
from splitgrow.layers.types.births import UNCHANGED, WAYS, Birth, Carry, Join, Joined
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
from splitgrow.layers.types.tensor_layers import TensorBlock, TensorUse, type_name

BUILT_IN_TYPES.update(LAYER_TYPES)

__all__ = [
    "UNCHANGED",
    "WAYS",
    "Along",
    "Birth",
    "Carry",
    "Join",
    "Joined",
    "LayerType",
    "Merging",
    "Nested",
    "Norm",
    "Signature",
    "Stock",
    "TensorAxes",
    "TensorBlock",
    "TensorUse",
    "computes_as",
    "known_layer_type",
    "layer_type_of",
    "layer_type_of_class",
    "library_layers",
    "recurrent_layers",
    "register_layer",
    "sized_layers",
    "tensor_layers",
    "torch_layers",
    "type_name",
    "unregister_layer",
]
