"""Ops that work position by position: activations, arithmetic, dropout, copies."""

from __future__ import annotations

import operator
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitgrow.axes import Axis, Size
from splitgrow.rules.registry import Op, Shaped, Unknown, as_size, each, register_op

_ACTIVATIONS = """
    relu relu6 elu selu celu leaky_relu rrelu gelu silu mish hardswish hardsigmoid hardtanh
    hardshrink softshrink tanhshrink softsign softplus sigmoid logsigmoid tanh threshold
"""
_ARITHMETIC = """
    add sub subtract mul multiply div divide true_divide floor_divide pow remainder fmod
    maximum minimum lerp addcmul addcdiv where rsub masked_fill clamp clamp_min clamp_max clip
    eq ne lt le gt ge logical_and logical_or logical_not logical_xor atan2 hypot copysign
"""
_FUNCTIONS = """
    abs neg negative positive exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sign
    sin cos tan asin acos atan sinh cosh asinh acosh atanh erf erfc erfinv floor ceil round trunc
    frac sgn nan_to_num isnan isinf isfinite relu_ sigmoid_ tanh_ logit sinc
"""
_COPIES = """
    clone contiguous detach detach_ requires_grad_ to type type_as float double half bfloat16 int
    long bool cpu cuda zeros_like ones_like full_like empty_like rand_like randn_like bernoulli
    zero_ fill_ copy_ normal_ uniform_ bernoulli_ dropout alpha_dropout
"""
_DROPOUTS = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"
_INFIX = """
    add sub mul truediv floordiv pow mod neg pos abs iadd isub imul itruediv eq ne lt le gt ge and_
    or_ xor invert iand ior
"""
_MODULES = """
    ReLU ReLU6 ELU SELU CELU LeakyReLU RReLU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh
    Hardshrink Softshrink Tanhshrink Softsign Softplus Sigmoid LogSigmoid Tanh Threshold PReLU
    Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout
"""


def _methods() -> list[str]:
    names = f"{_ACTIVATIONS} {_ARITHMETIC} {_FUNCTIONS} {_COPIES}".split()
    in_place = [f"{name}_" for name in names if not name.endswith("_")]
    return [name for name in dict.fromkeys(names + in_place) if hasattr(Tensor, name)]


def _functions() -> list[Any]:
    names = f"{_ACTIVATIONS} {_ARITHMETIC} {_FUNCTIONS} {_COPIES}"
    in_place = " ".join(f"{name}_" for name in _ACTIVATIONS.split())
    found = [
        *each(f"{names} {in_place}", torch),
        *each(f"{_ACTIVATIONS} {in_place} {_DROPOUTS}", F),
        *each(_INFIX, operator),
    ]
    return list({id(function): function for function in found}.values())


@register_op(*each(_MODULES, nn), *_functions(), *_methods())
@register_op("torchvision.ops.stochastic_depth.stochastic_depth")
def elementwise(op: Op) -> Any:
    """Ties what meets position by position; a dimension of size one is spread over the other's."""
    tensors = list(op.shaped())
    if not tensors:
        return arithmetic(op)
    for size in op.sizes():
        # x / math.sqrt(C): the values themselves would change with the width.
        op.groups.fix_size(size, op.reason("computes with the width itself"))
    return Shaped(broadcast(op, [tensor.axes for tensor in tensors]))


def broadcast(op: Op, tensors: list[tuple[Axis, ...]]) -> tuple[Axis, ...]:
    """The axes of the result when tensors meet under torch's broadcasting."""
    axes = []
    for dim in range(-max(map(len, tensors)), 0):
        meeting = [axes[dim] for axes in tensors if len(axes) >= -dim]
        wide = [axis for axis in meeting if op.groups.length(axis) != 1]
        if wide:
            for axis in meeting:
                if op.groups.length(axis) == 1:
                    op.fix(axis, "spreads its one channel over those of another tensor")
        first, *others = wide or meeting
        for other in others:
            op.groups.tie(first, other, op.reason("ties it to a size that does not change"))
        axes.append(op.groups.resolve(first))
    return tuple(axes)


def arithmetic(op: Op) -> Any:
    """Sums, products and quotients of numbers taken from shapes."""
    left, right = (*op.args, None, None)[:2]
    if isinstance(left, (tuple, list)) and isinstance(right, (tuple, list)):
        if op.target is operator.add:
            return (*left, *right)
    elif isinstance(op.example, int) and not isinstance(op.example, bool) and right is not None:
        answer = _whole(op.target, left, right)
        if answer is not None:
            return answer
    for size in op.sizes():
        op.groups.fix_size(size, op.reason("computes with the width in a way that cannot grow"))
    return op.example


def _whole(target: Any, left: Any, right: Any) -> Size | None:
    """A whole number that changes evenly with its operands, or None."""
    one, other = as_size(left), as_size(right)
    try:
        if target in (operator.add, operator.iadd):
            return one + other
        if target in (operator.sub, operator.isub):
            return one + other.scaled(Fraction(-1))
        if target in (operator.mul, operator.imul):
            if not other.slope:
                return one.scaled(Fraction(other.value))
            return other.scaled(Fraction(one.value)) if not one.slope else None
        if target is operator.floordiv and not other.slope and one.slope:
            return one.scaled(Fraction(1, other.value))
    except (ArithmeticError, Unknown):
        return None
    return None


@register_op("new_zeros", "new_ones", "new_empty", "new_full", torch.zeros, torch.ones, torch.full)
@register_op(torch.rand, torch.randn, torch.empty, torch.arange)
def creation(op: Op) -> Any:
    """A tensor of a given shape: where that follows a width, the width cannot grow."""
    for size in op.sizes():
        op.groups.fix_size(size, op.reason("makes a tensor of a size taken from the width"))
    return op.constants("makes a tensor of its own")


@register_op("size", getattr)
def attribute(op: Op) -> Any:
    """Shapes as numbers that follow growth; other attributes as they are."""
    name = "shape" if op.target == "size" else op.args[1]
    if not isinstance(op.args[0], Shaped):
        return getattr(op.args[0], name, op.example)
    if name == "shape":
        sizes = tuple(op.groups.size(axis) for axis in op.x.axes)
        dim = op.argument(1, "dim") if op.target == "size" else None
        return sizes if dim is None else sizes[dim]
    if name in ("T", "mT", "H", "mH"):
        keep = len(op.x.axes) - 2 if name.startswith("m") else 0
        return Shaped(op.x.axes[:keep] + op.x.axes[keep:][::-1])
    if name in ("data", "real"):
        return op.x
    if name in ("dtype", "device", "ndim", "is_cuda", "requires_grad", "layout", "itemsize"):
        return op.example
    raise Unknown(f"reads `.{name}`, which splitgrow does not know")


@register_op("dim", "ndimension", "get_device", "is_floating_point", torch.is_floating_point)
def properties(op: Op) -> Any:
    """Facts about a tensor that no growth changes."""
    return op.example


@register_op("numel", torch.numel, len)
def counts(op: Op) -> Any:
    """Numbers of elements: fixed where they would change."""
    if isinstance(op.args[0], (tuple, list)):
        return op.example
    axes = op.x.axes[:1] if op.target is len else op.x.axes
    for axis in axes:
        op.fix(axis, "counts its positions")
    return op.example
