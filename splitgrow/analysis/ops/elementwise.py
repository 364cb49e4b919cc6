"""Ops that work position by position: activations, arithmetic, dropout, copies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitgrow.analysis.channels.channel_axes import Axis
from splitgrow.analysis.ops.op import Op, Shaped
from splitgrow.analysis.ops.registry import each, register_op

_ACTIVATIONS = """
    relu relu6 elu selu celu leaky_relu rrelu gelu silu mish hardswish hardsigmoid hardtanh
    hardshrink softshrink tanhshrink softsign softplus sigmoid logsigmoid tanh threshold
"""
_ARITHMETIC = """
    add sub subtract mul multiply div divide true_divide floor_divide pow remainder fmod
    maximum minimum lerp addcmul addcdiv where rsub masked_fill clamp clamp_min clamp_max clip
    eq ne lt le gt ge logical_and logical_or logical_not logical_xor atan2 hypot copysign
    fmin fmax float_power logaddexp logaddexp2 xlogy heaviside ldexp nextafter isclose arctan2
    greater greater_equal less less_equal not_equal bitwise_and bitwise_or bitwise_xor polar complex
"""
_FUNCTIONS = """
    abs neg negative positive exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square reciprocal sign
    sin cos tan asin acos atan sinh cosh asinh acosh atanh erf erfc erfinv floor ceil round trunc
    frac sgn nan_to_num isnan isinf isfinite relu_ sigmoid_ tanh_ logit sinc fix absolute
    isposinf isneginf isreal signbit rad2deg deg2rad lgamma digamma i0 angle conj conj_physical
    resolve_conj resolve_neg bitwise_not arccos arcsin arctan arccosh arcsinh arctanh
"""
_SPECIAL = """
    bessel_j0 bessel_j1 digamma entr erf erfc erfcx erfinv exp2 expit expm1 gammaln i0 i0e i1 i1e
    log1p log_ndtr logit ndtr ndtri round sinc xlog1py xlogy
"""
_COPIES = """
    clone contiguous detach detach_ requires_grad_ float double half bfloat16 int long bool cpu cuda
    short byte char
    zeros_like ones_like full_like empty_like rand_like randn_like bernoulli zero_ fill_ copy_
    normal_ uniform_ bernoulli_ dropout alpha_dropout
"""
_DROPOUTS = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"
_INFIX = """
    radd rsub rmul div rdiv truediv rtruediv idiv floordiv rfloordiv pow rpow ipow mod rmod and rand
    iand or ror ior xor rxor ixor invert lshift rshift neg pos abs eq ne lt le gt ge iadd isub imul
    itruediv ifloordiv imod
"""
_MODULES = """
    ReLU ReLU6 ELU SELU CELU LeakyReLU RReLU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh
    Hardshrink Softshrink Tanhshrink Softsign Softplus Sigmoid LogSigmoid Tanh Threshold PReLU
    Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout
"""


def _methods() -> list[str]:
    names = f"{_ACTIVATIONS} {_ARITHMETIC} {_FUNCTIONS} {_COPIES}".split()
    in_place = [f"{name}_" for name in names if not name.endswith("_")]
    infix = [f"__{name}__" for name in _INFIX.split()]
    return [name for name in dict.fromkeys(names + in_place + infix) if hasattr(Tensor, name)]


def _functions() -> list[Any]:
    names = f"{_ACTIVATIONS} {_ARITHMETIC} {_FUNCTIONS} {_COPIES}"
    in_place = " ".join(f"{name}_" for name in _ACTIVATIONS.split())
    found = [
        *each(f"{names} {in_place}", torch),
        *each(f"{_ACTIVATIONS} {in_place} {_DROPOUTS}", F),
        *each(_SPECIAL, torch.special),
    ]
    return list({id(function): function for function in found}.values())


_ZEROS_STAY = """
    add iadd radd sub isub subtract mul imul rmul multiply neg abs square relu relu_ gelu silu tanh
    hardswish mish elu leaky_relu dropout clone contiguous detach float double half bfloat16 cpu
    cuda zeros_like ReLU GELU SiLU Tanh Hardswish Mish ELU LeakyReLU Dropout Identity
"""
_KEEP_ZEROS = frozenset(_ZEROS_STAY.split())


@register_op(*each(_MODULES, nn), *_functions(), *_methods(), keeps_zeros=True)
def elementwise(op: Op) -> Any:
    """Ties what meets position by position; a dimension of size one is spread over the other's."""
    axes = broadcast(op, [tensor.axes for tensor in op.shaped()])
    given = (*op.args, op.kwargs.get("other"))
    numbers = [leaf for leaf in given if isinstance(leaf, (int, float))]
    added = "mul" not in op.name and any(numbers)
    if added or op.name not in _KEEP_ZEROS:
        op.hear(Shaped(axes))
    return Shaped(axes)


@register_op("to", "type", "type_as", keeps_zeros=True)
def conversion(op: Op) -> Any:
    """The same values; another tensor among the arguments only tells its dtype and device."""
    return op.x


def broadcast(op: Op, tensors: list[tuple[Axis, ...]]) -> tuple[Axis, ...]:
    """The axes of the result when tensors meet under torch's broadcasting."""
    axes = []
    for dim in range(-max(map(len, tensors), default=0), 0):
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
