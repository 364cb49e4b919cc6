"""The layer types that can grow, and how to teach splitgrow others."""

from splitgrow.kinds import libraries, stock
from splitgrow.kinds.alike import (
    entry_of,
    kind_of,
    kind_of_type,
    register_layer,
    sized_layers,
    unregister_layer,
)
from splitgrow.kinds.registry import BUILT_IN, KINDS, Along, LayerKind, Stock, TensorAxes

BUILT_IN.update(KINDS)

__all__ = [
    "Along",
    "LayerKind",
    "Stock",
    "TensorAxes",
    "entry_of",
    "kind_of",
    "kind_of_type",
    "libraries",
    "register_layer",
    "sized_layers",
    "stock",
    "unregister_layer",
]
