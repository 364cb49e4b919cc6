"""Ops that work position by position: activations, arithmetic, dropout, copies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from splitgrow.analysis.channels.channel_axes import Axis
from splitgrow.analysis.ops.facts import (
    FRESH,
    KEPT,
    POINTWISE,
    SUMMED,
    UNKNOWN,
    Arithmetic,
    Facts,
    first,
    multiple,
    same_side,
    total,
)
from splitgrow.analysis.ops.op import Op, Shaped
from splitgrow.analysis.ops.registry import entry, facts_of

_SMOOTH = POINTWISE.but(zero=True)
"""Position by position without a jump, and zero of zero."""
_LINEAR = _SMOOTH.but(linear=True)
_JUMPING = FRESH.but(operands=1)
"""Position by position with jumps or poles."""
_POSITIVE, _ONE = (0.0, math.inf), (-1.0, 1.0)

_ACTIVATIONS: Mapping[str, Facts] = {
    "relu": _SMOOTH.but(bounds=_POSITIVE, clip=True, activation=True),
    "relu6": _SMOOTH.but(bounds=(0.0, 6.0), clip=True, activation=True),
    "hardtanh": POINTWISE.but(
        bounds=_ONE, limits=("min_val", "max_val"), clip=True, activation=True
    ),
    "elu selu celu leaky_relu gelu silu mish hardswish": _SMOOTH.but(activation=True),
    "sigmoid hardsigmoid": POINTWISE.but(bounds=(0.0, 1.0), activation=True),
    "tanh softsign": _SMOOTH.but(bounds=_ONE, activation=True),
    "softplus": POINTWISE.but(bounds=_POSITIVE, activation=True),
    "logsigmoid": POINTWISE.but(bounds=(-math.inf, 0.0), activation=True),
    "rrelu": FRESH.but(zero=True, drawn=True, activation=True),
    "tanhshrink softshrink": _SMOOTH,
    "hardshrink": _JUMPING.but(zero=True),
    "PReLU": SUMMED.but(activation=True),
    "threshold": FRESH,
}
_CLAMP = POINTWISE.but(operands=0, clip=True)
_ARITHMETIC: Mapping[str, Facts] = {
    "add __add__ __radd__ __iadd__": _LINEAR.but(
        operands=2, arithmetic=Arithmetic.ADDS, carry=total
    ),
    "sub subtract rsub __sub__ __rsub__ __isub__": _LINEAR.but(operands=2),
    "mul multiply __mul__ __rmul__ __imul__": _LINEAR.but(
        operands=2, arithmetic=Arithmetic.MULTIPLIES, carry=multiple
    ),
    "div divide true_divide __div__ __idiv__ __truediv__ __itruediv__": POINTWISE.but(
        linear=True, operands=2, arithmetic=Arithmetic.DIVIDES
    ),
    "clamp clip": _CLAMP.but(limits=("min", "max")),
    "clamp_min": _CLAMP.but(limits=("min", None)),
    "clamp_max": _CLAMP.but(limits=(None, "max")),
    "maximum minimum fmax fmin hypot atan2 arctan2 nextafter": FRESH.but(zero=True),
    """pow remainder fmod floor_divide copysign float_power logaddexp logaddexp2 xlogy
    torch.special.xlog1py ldexp __pow__ __ipow__ __mod__ __imod__ __floordiv__ __ifloordiv__
    """: FRESH,
    "__rdiv__ __rtruediv__ __rpow__ __rmod__ __rfloordiv__": FRESH,
    "lerp addcmul": FRESH.but(zero=True),
    "where masked_fill": FRESH.but(zero=True, linear=True),
    """addcdiv heaviside isclose polar complex eq ne lt le gt ge greater
    greater_equal less less_equal not_equal logical_and logical_or logical_not logical_xor
    bitwise_and bitwise_or bitwise_xor bitwise_not __and__ __rand__ __iand__ __or__ __ror__ __ior__
    __xor__ __rxor__ __ixor__ __invert__ __lshift__ __rshift__ __eq__ __ne__ __lt__ __le__ __gt__
    __ge__
    """: FRESH,
}
_FUNCTIONS: Mapping[str, Facts] = {
    "abs absolute square __abs__": _SMOOTH.but(bounds=_POSITIVE),
    "neg negative __neg__": _LINEAR,
    "exp exp2 torch.special.exp2": _JUMPING.but(bounds=_POSITIVE),
    "sqrt": _JUMPING.but(bounds=_POSITIVE, zero=True),
    "sin erf torch.special.erf": _JUMPING.but(bounds=_ONE, zero=True),
    "cos": _JUMPING.but(bounds=_ONE),
    """expm1 torch.special.expm1 log1p torch.special.log1p tan asin arcsin atan arctan sinh asinh
    arcsinh atanh arctanh erfinv torch.special.erfinv floor ceil trunc fix frac round sign
    torch.special.round sgn deg2rad rad2deg nan_to_num torch.special.i1 torch.special.i1e
    torch.special.entr
    """: _JUMPING.but(zero=True),
    """log log2 log10 rsqrt reciprocal acos arccos cosh acosh arccosh erfc torch.special.erfc
    torch.special.erfcx logit torch.special.logit sinc torch.special.sinc lgamma
    torch.special.gammaln digamma torch.special.digamma i0 torch.special.i0 torch.special.i0e
    torch.special.bessel_j0 torch.special.bessel_j1 torch.special.expit torch.special.log_ndtr
    torch.special.ndtr torch.special.ndtri torch.special.xlogy
    """: FRESH,
    "": FRESH,
    "isnan isinf isfinite isposinf isneginf isreal signbit angle ones_like full_like": FRESH,
    "bernoulli empty_like rand_like randn_like": FRESH.but(alike=False),
    "zeros_like": FRESH.but(zero=True),
    "positive __pos__ conj conj_physical resolve_conj resolve_neg": UNKNOWN.but(
        zero=True, linear=True
    ),
}
_COPIES: Mapping[str, Facts] = {
    "clone": KEPT.but(zero=True, fresh=True, carry=first),
    "contiguous detach detach_ cpu cuda double float Identity": KEPT.but(zero=True, carry=first),
    "half bfloat16": KEPT.but(zero=True),
    "requires_grad_ zero_ int long bool short byte char": UNKNOWN.but(zero=True),
    "fill_ copy_": UNKNOWN,
    "normal_ uniform_ bernoulli_": UNKNOWN.but(alike=False),
    "dropout dropout1d dropout2d dropout3d": KEPT.but(zero=True, drawn=True, carry=same_side),
    "alpha_dropout feature_alpha_dropout": KEPT.but(drawn=True),
}


def elementwise(op: Op) -> Any:
    """Ties axes that meet position by position; a dimension of size one spreads over the other."""
    axes = broadcast(op, [tensor.axes for tensor in op.shaped()])
    given = (*op.args, op.kwargs.get("other"), op.kwargs.get("value"))
    numbers = any(leaf for leaf in given if isinstance(leaf, (int, float)))
    if numbers and facts_of(op.target).arithmetic is not Arithmetic.MULTIPLIES:
        op.not_zero(Shaped(axes))
    return Shaped(axes)


for table in (_ACTIVATIONS, _ARITHMETIC, _FUNCTIONS, _COPIES):
    for names, facts in table.items():
        entry(names, facts)(elementwise)


@entry("Tensor.to Tensor.type Tensor.type_as", KEPT.but(zero=True))
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
