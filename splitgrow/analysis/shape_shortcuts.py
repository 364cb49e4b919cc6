"""Results of common ops on tensors without values, known without running the ops.

A fake tensor's way through torch's dispatcher takes a hundred microseconds and more. Where no more
is asked for than a tensor of a shape that is known, it is made directly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from splitgrow.analysis.ops import elementwise, rule_of
from splitgrow.analysis.ops.registry import each
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.types import layer_type_of

_ARITHMETIC = "add sub mul"
_ACTIVATIONS = "relu gelu silu sigmoid tanh hardswish hardsigmoid relu6 elu mish"
_IN_PLACE = frozenset(each("add_ sub_ mul_ relu_", torch, Tensor))
_OPERANDS = {
    **dict.fromkeys(each(f"{_ARITHMETIC} add_ sub_ mul_", torch, Tensor), 2),
    **dict.fromkeys(each(f"{_ACTIVATIONS} relu_", torch, Tensor, F), 1),
}
"""The functions that are known, with the number of their operands."""


def result_of_function(
    function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Tensor | None:
    """What a function makes of its arguments, where it is like the tensors among them."""
    first = args[0] if args else None
    if type(first) is not FakeTensor or kwargs not in ({}, {"inplace": False}):
        return None
    try:
        if _OPERANDS.get(function) != len(args) or not _are_alike(args):
            return None
    except TypeError:  # a function that is not hashable
        return None
    return first if function in _IN_PLACE else without_values(first, first.shape)


def _are_alike(operands: Sequence[Any]) -> bool:
    """Whether operands are plain tensors of one shape and type, but for numbers after the first."""
    first = operands[0]
    with torch._C.DisableTorchFunction():  # noqa: SLF001 - what is read here is no step
        if torch.is_grad_enabled() or not first.is_floating_point() or not first.is_contiguous():
            return False
        if _autocast(first.device.type):
            return False
        shape, dtype, device = first.shape, first.dtype, first.device
        for other in operands[1:]:
            if type(other) is FakeTensor:
                same = other.shape == shape and other.dtype == dtype and other.device == device
                if not (same and other.is_contiguous()):
                    return False
            elif type(other) not in (int, float):
                return False
    return True


def result_of_leaf(module: nn.Module, args: Sequence[Any]) -> Tensor | None:
    """What a leaf module makes of a fake tensor, where its shape is known without running it."""
    x = args[0] if len(args) == 1 else None
    if not isinstance(x, FakeTensor) or isinstance(module, SplitLayer):
        return None
    with torch._C.DisableTorchFunction():  # noqa: SLF001 - what is read here is no step
        if _autocast(x.device.type):
            return None
        entry, weight = layer_type_of(module), getattr(module, "weight", None)
        if weight is not None and weight.dtype != x.dtype:
            return None
        if entry is not None:
            shape = entry.output_shape(module, tuple(x.shape))
            return without_values(x, shape) if shape is not None else None
        held = module._parameters or module._modules  # noqa: SLF001
        if held or rule_of(type(module)) is not elementwise.elementwise:
            return None
        if getattr(module, "inplace", False):
            return x
        if x.is_contiguous():
            return without_values(x, x.shape)
    return torch.empty_like(x)


def _autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_values(like: FakeTensor, shape: Sequence[int]) -> FakeTensor:
    """A new contiguous tensor, as ``like.new_empty(shape)`` would make it."""
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():  # noqa: SLF001
        meta = torch.empty(shape, dtype=like.dtype, device="meta")
        return FakeTensor(like.fake_mode, meta, like.fake_device)
