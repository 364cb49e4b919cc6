"""The rules of the ops: what each does to channel axes."""

from splitgrow.rules import elementwise, functional, joins, products, reshaping, sizes, spatial
from splitgrow.rules.registry import (
    _RULES,
    BUILT_IN,
    Op,
    Shaped,
    Unknown,
    register_op,
    result_of,
    rule_of,
    unregister_op,
)

BUILT_IN.update(_RULES)

__all__ = [
    "Op",
    "Shaped",
    "Unknown",
    "elementwise",
    "functional",
    "joins",
    "products",
    "register_op",
    "reshaping",
    "result_of",
    "rule_of",
    "sizes",
    "spatial",
    "unregister_op",
]
