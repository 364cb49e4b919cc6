"""The rules of the ops: what each does to channel axes."""

from splitgrow.analysis.ops import (
    elementwise,
    functional,
    joins,
    picking,
    products,
    reductions,
    reshaping,
    sequences,
    sizes,
    spatial,
)
from splitgrow.analysis.ops.facts import Arithmetic, Facts, Values
from splitgrow.analysis.ops.forms import is_in_place_name, method_of_operator, module_type
from splitgrow.analysis.ops.op import Op, Shaped, Unknown
from splitgrow.analysis.ops.registry import (
    entry_of,
    facts_of,
    register_op,
    result_of,
    unregister_op,
)

__all__ = [
    "Arithmetic",
    "Facts",
    "Op",
    "Shaped",
    "Unknown",
    "Values",
    "elementwise",
    "entry_of",
    "facts_of",
    "functional",
    "is_in_place_name",
    "joins",
    "method_of_operator",
    "module_type",
    "picking",
    "products",
    "reductions",
    "register_op",
    "reshaping",
    "result_of",
    "sequences",
    "sizes",
    "spatial",
    "unregister_op",
]
