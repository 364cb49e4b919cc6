"""The rules of the ops: what each does to channel axes."""

from splitgrow.analysis.ops import (
    elementwise,
    functional,
    joins,
    picking,
    products,
    reductions,
    reshaping,
    sizes,
    spatial,
)
from splitgrow.analysis.ops.op import Op, Shaped, Unknown
from splitgrow.analysis.ops.registry import (
    _RULES,
    BUILT_IN_OPS,
    register_op,
    result_of,
    rule_of,
    unregister_op,
)

BUILT_IN_OPS.update(_RULES)

__all__ = [
    "Op",
    "Shaped",
    "Unknown",
    "elementwise",
    "functional",
    "joins",
    "picking",
    "products",
    "reductions",
    "register_op",
    "reshaping",
    "result_of",
    "rule_of",
    "sizes",
    "spatial",
    "unregister_op",
]
