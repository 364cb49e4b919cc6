"""The layer types that can grow, and how to teach splitgrow others."""

from splitgrow.layers.types import (
    library_layers,
    recurrent_layers,
    statistic_norms,
    tensor_layers,
    torch_layers,
)
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
from splitgrow.layers.types.start_values import UNCHANGED, WAYS, Carry, Join, Joined, Start
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
    "Carry",
    "Join",
    "Joined",
    "LayerType",
    "Merging",
    "Nested",
    "Norm",
    "Signature",
    "Start",
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
    "statistic_norms",
    "tensor_layers",
    "torch_layers",
    "type_name",
    "unregister_layer",
]
