"""The names of traced calls: rules are found by functions, module types and method names."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor

_METHODS = {
    member: name
    for name in dir(Tensor)
    if callable(member := getattr(Tensor, name)) and name != "__class__"
}

_OPERATORS = {
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
    "__len__": len,
    "__contains__": operator.contains,
}

_FACTS = """
    dtype device ndim is_cuda is_cpu is_meta is_mps is_xpu is_sparse is_quantized is_nested layout
    requires_grad grad_fn grad is_leaf itemsize names dim ndimension get_device is_floating_point
    is_complex is_contiguous is_inference is_signed is_conj is_neg element_size is_shared is_pinned
    has_names _version _is_view _set_grad_enabled set_grad_enabled __hash__ __repr__ __str__
    __format__ __dir__ __reduce_ex__
"""
_HARMLESS = frozenset(_FACTS.split())
"""Names that tell nothing of a tensor's size and make no tensor."""

HANDS_OUT_MEMORY = frozenset(
    ("data_ptr", "__dlpack__", "storage", "untyped_storage", "__reduce_ex__")
)
"""Names that give a tensor's memory to code that torch cannot see, as copy.copy and pickle."""


def target_of(function: Any, args: tuple[Any, ...]) -> tuple[str, Any, tuple[Any, ...]]:
    """The name, the target and the arguments of a call in the trace.

    A method goes by its name, an attribute of a tensor is ``getattr(tensor, name)``. The target is
    None where there is nothing to trace.
    """
    name = getattr(function, "__name__", str(function))
    if name == "__get__":
        attribute = function.__self__.__name__
        if attribute in _HARMLESS:
            return name, None, args
        return "getattr", getattr, (args[0], attribute)
    if name == "__set__":
        return "setattr", setattr, (args[0], function.__self__.__name__, *args[1:])
    if name in _HARMLESS:
        return name, None, args
    try:
        method = _METHODS.get(function)
    except TypeError:  # not hashable
        method = None
    if method is None:
        return name, function, args
    return method.strip("_") or method, _OPERATORS.get(method, method), args
