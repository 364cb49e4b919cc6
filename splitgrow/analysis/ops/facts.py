"""The facts of an op besides its rule: the values and the memory of its result.

Each fact is stated once, where the op is entered. Shape shortcuts, insertion, constants and fusion
read it. `tests/analysis/ops/test_facts.py` checks the facts on values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, TypeAlias

from torch import nn

ValueRange: TypeAlias = tuple[float, float]
EVERYTHING: ValueRange = (-math.inf, math.inf)
Carry: TypeAlias = Callable[[Sequence[ValueRange]], ValueRange]
"""Gives the value range of the result from those of the operands."""


class Values(Enum):
    """How the values of a result come from those of the operands, in evaluation mode."""

    UNKNOWN = "nothing is known"
    POINTWISE = "each from those at its position, without a jump, and rounding is not blown up"
    KEPT = "the same values"
    MOVED = "the same values at other places"
    POOLED = "a channel that is one number everywhere becomes that number"
    SUMMED = "a channel of zeros becomes one of zeros"
    PRODUCT = "sums of products, which are zero where a factor is"


class Arithmetic(Enum):
    """The operations that have a neutral number."""

    ADDS = "+"
    MULTIPLIES = "*"
    DIVIDES = "/"

    @property
    def neutral(self) -> int | None:
        """The operand that leaves the other as it is, on either side; None if there is none."""
        return {Arithmetic.ADDS: 0, Arithmetic.MULTIPLIES: 1}.get(self)


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts that are known of an op, by default none.

    Attributes:
        values: How its values come from its operands'.
        zero: Whether channels that are zero before it are zero after it, in training too.
        linear: Whether it works alike on all channels, and so that the mean of two channels before
            it is their mean after it: a product with another tensor, or the dividend of a quotient.
        alike: Whether equal channels before it are equal after it.
        fresh: Whether its result lies in memory of its own, unless it works in place.
        operands: The number of contiguous tensors of one shape and floating dtype of which it makes
            one like them, when it is given nothing else; 0 if that is not known.
        bounds: The value range of its result, unless `limits` say otherwise.
        carry: Gives the value range of its result from those of its operands.
        limits: The names of the arguments that set the ends of `bounds`, in order; None for an end
            that no argument sets. They follow the first operand.
        clip: Whether it leaves values in its bounds as they are.
        arithmetic: Its operation, if that has a neutral number.
        activation: Whether it is an activation function.
        drawn: Whether it draws random numbers in training mode, as a dropout.
        turns: Whether it may bring channels to another dimension.
        factors: For a product, the positions and names of the operands that make it zero.
    """

    values: Values = Values.UNKNOWN
    zero: bool = False
    linear: bool = False
    alike: bool = True
    fresh: bool = False
    operands: int = 0
    bounds: ValueRange = EVERYTHING
    carry: Carry | None = None
    limits: tuple[str | None, str | None] = (None, None)
    clip: bool = False
    arithmetic: Arithmetic | None = None
    activation: bool = False
    drawn: bool = False
    turns: bool = False
    factors: tuple[tuple[int, str], ...] = ((0, "input"), (1, "other"))

    def but(self, **changes: Any) -> Facts:
        """The same with some changes."""
        return replace(self, **changes)

    def bounds_of(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], module: nn.Module | None = None
    ) -> ValueRange:
        """The value range of the result of one call.

        Args:
            args: The call's positional arguments.
            kwargs: Its named arguments.
            module: The module, if it is the call of one.

        Example:
            >>> from splitgrow.analysis.ops import facts_of
            >>> facts_of("clamp").bounds_of(("x", 0.0), {})
            (0.0, inf)
        """
        ends = list(self.bounds)
        named = [name for name in self.limits if name is not None]
        given = {**dict(zip(named, args[1:], strict=False)), **kwargs}
        for end, name in enumerate(self.limits):
            if name is None:
                continue
            bound = getattr(module, name) if module is not None else given.get(name)
            if bound is None:
                continue
            if not isinstance(bound, (int, float)):
                return EVERYTHING
            ends[end] = float(bound)
        low, high = ends
        return (low, high) if low <= high else EVERYTHING


# -- value ranges ---------------------------------------------------------------------------------


def first(operands: Sequence[ValueRange]) -> ValueRange:
    """The value range of the first operand."""
    return operands[0]


def hull(operands: Sequence[ValueRange]) -> ValueRange:
    """From the lowest to the highest value of any operand."""
    lows, highs = zip(*operands, strict=True)
    return min(lows), max(highs)


def with_zero(operands: Sequence[ValueRange]) -> ValueRange:
    """The first operand's value range, extended to zero: averages that may count zeros."""
    low, high = operands[0]
    return min(low, 0.0), max(high, 0.0)


def same_side(operands: Sequence[ValueRange]) -> ValueRange:
    """On the first operand's side of zero: a dropout scales up the values that it keeps."""
    low, high = operands[0]
    return (-math.inf if low < 0 else 0.0), (math.inf if high > 0 else 0.0)


def total(operands: Sequence[ValueRange]) -> ValueRange:
    """The value range of the sum of two."""
    if len(operands) != 2:
        return EVERYTHING
    lows, highs = zip(*operands, strict=True)
    return sum(lows), sum(highs)


def multiple(operands: Sequence[ValueRange]) -> ValueRange:
    """The product of two operands that are not negative is not negative."""
    positive = len(operands) == 2 and all(low >= 0 for low, _ in operands)
    return (0.0, math.inf) if positive else EVERYTHING


# -- facts that many ops share --------------------------------------------------------------------

UNKNOWN = Facts()
FRESH = Facts(fresh=True)
POINTWISE = Facts(values=Values.POINTWISE, fresh=True, operands=1)
KEPT = Facts(values=Values.KEPT, linear=True)
MOVED = Facts(values=Values.MOVED, zero=True, linear=True, carry=first)
POOLED = Facts(values=Values.POOLED, zero=True, fresh=True)
SUMMED = Facts(values=Values.SUMMED, zero=True, fresh=True)
PRODUCT = Facts(values=Values.PRODUCT, zero=True, linear=True, fresh=True)
