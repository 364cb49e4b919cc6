"""The layer types that can grow, and how to teach splitgrow others."""

from splitgrow.kinds import libraries, stock
from splitgrow.kinds.alike import kind_of, kind_of_type, register_layer, sized_layers
from splitgrow.kinds.registry import Along, LayerKind, Stock, TensorAxes

__all__ = [
    "Along",
    "LayerKind",
    "Stock",
    "TensorAxes",
    "kind_of",
    "kind_of_type",
    "libraries",
    "register_layer",
    "sized_layers",
    "stock",
]
