"""Results of common ops on tensors without values, known without running the ops.

A fake tensor's way through torch's dispatcher takes a hundred microseconds and more. A result of a
known shape is made directly instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils import _pytree as pytree

from splitgrow.analysis.leaf_modules import outline_of
from splitgrow.analysis.ops import Values, facts_of, is_in_place_name
from splitgrow.layers.types import LayerType, Nested, Signature, layer_type_of


def result_of_op(
    name: str, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Tensor | None:
    """The result of a function or method that is like the tensors among its arguments.

    Args:
        name: The function's name.
        target: The function, or the method's name.
        args: Its positional arguments.
        kwargs: Its named arguments.
    """
    first = args[0] if args else None
    if type(first) is not FakeTensor or kwargs not in ({}, {"inplace": False}):
        return None
    if facts_of(target).operands != len(args) or not _are_alike(args):
        return None
    in_place = is_in_place_name(target if isinstance(target, str) else name)
    return first if in_place else without_values(first, first.shape)


def _are_alike(operands: Sequence[Any]) -> bool:
    """Whether operands are plain tensors of one shape and type, or numbers after the first."""
    first = operands[0]
    with torch._C.DisableTorchFunction():  # noqa: SLF001 - reads here are no ops
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


def result_of_leaf(module: nn.Module, args: Sequence[Any]) -> Any:
    """A leaf module's result on a fake tensor, where the shape is known without a run."""
    x = args[0] if args else None
    if not isinstance(x, FakeTensor):
        return None
    module = outline_of(module)
    entry = layer_type_of(module)
    signature = entry.signature(module) if entry is not None else None
    if entry is not None and signature is not None:
        return _several_results(module, entry, signature, args)
    if len(args) != 1:
        return None
    with torch._C.DisableTorchFunction():  # noqa: SLF001 - reads here are no ops
        if _autocast(x.device.type):
            return None
        weight = getattr(module, "weight", None)
        if weight is not None and weight.dtype != x.dtype:
            return None
        if entry is not None:
            shape = entry.output_shape(module, tuple(x.shape))
            return without_values(x, shape) if shape is not None else None
        held = module._parameters or module._modules  # noqa: SLF001
        known = facts_of(type(module))
        if held or not (known.operands == 1 or known.values is Values.KEPT):
            return None
        if getattr(module, "inplace", False):
            return x
        if x.is_contiguous():
            return without_values(x, x.shape)
    return torch.empty_like(x)


def _several_results(
    module: nn.Module, entry: LayerType, signature: Signature, args: Sequence[Any]
) -> Any:
    """The results of a layer that has several, or takes states."""
    x, *states = pytree.tree_leaves(args)
    with torch._C.DisableTorchFunction():  # noqa: SLF001 - reads here are no ops
        if not all(type(each) is FakeTensor for each in (x, *states)) or _autocast(x.device.type):
            return None
        if any(p.dtype != x.dtype for p in (*module.parameters(recurse=False), *states)):
            return None
        given = [tuple(state.shape) for state in states]
        shapes = entry.result_shapes(module, tuple(x.shape), given)
    if shapes is None:
        return None
    made = iter([without_values(x, shape) for shape in shapes])
    return _nested(signature.results, made)


def _nested(form: Nested, items: Iterator[Any]) -> Any:
    if isinstance(form, tuple):
        return tuple(_nested(each, items) for each in form)
    return next(items)


def _autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def without_values(like: FakeTensor, shape: Sequence[int]) -> FakeTensor:
    """A new contiguous tensor, as ``like.new_empty(shape)`` would make it."""
    with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():  # noqa: SLF001
        meta = torch.empty(shape, dtype=like.dtype, device="meta")
        return FakeTensor(like.fake_mode, meta, like.fake_device)
