"""Channel axes, and numbers taken from shapes. Pure integers, no torch.

A channel axis is a tuple of runs, and a run says which group of channels it belongs to and on how
many positions each of the group's units lies. A 64-channel convolution gives ``(Run(a, 1),)``;
flattening its 7x7 maps before a Linear gives ``(Run(a, 49),)``; concatenating two gives
``(Run(a, 1), Run(b, 1))``; queries, keys and values of heads of `d` give ``(Run(h, d),) * 3``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Run:
    """A stretch of an axis: the units of one group, each on `repeat` neighbouring positions.

    With `group` None it is a constant stretch of `repeat` positions that never grows. `reason` then
    says why, if for another reason than that it measures space or batch.
    """

    group: int | None
    repeat: int
    reason: str = field(default="", compare=False)


Axis = tuple[Run, ...]


def constant(length: int, reason: str = "") -> Axis:
    """The axis of `length` positions that never grows, such as height, time or batch."""
    return (Run(None, length, reason),)


def scaled(axis: Axis, factor: int) -> Axis:
    """The axis with each position repeated on `factor` neighbouring ones."""
    if factor == 1:
        return axis
    return tuple(Run(run.group, run.repeat * factor, run.reason) for run in axis)


def groups_of(axis: Axis) -> list[int]:
    """The groups on an axis, each once, in order of appearance."""
    return list(dict.fromkeys(run.group for run in axis if run.group is not None))


@dataclass(frozen=True)
class Size:
    """A whole number taken from a shape: its value now, and how it changes with growth.

    `slope[g]` is the rise of the number for each unit that group `g` gains. A number with an empty
    slope stays as it is, such as one that the user wrote down. `axis` is the axis whose length it
    is, if there is one.
    """

    value: int
    slope: Mapping[int, Fraction] = field(default_factory=dict)
    axis: Axis | None = field(default=None, compare=False)

    def __add__(self, other: Size) -> Size:
        slope = dict(self.slope)
        for group, change in other.slope.items():
            slope[group] = slope.get(group, Fraction(0)) + change
        return Size(self.value + other.value, slope)

    def scaled(self, factor: Fraction) -> Size:
        """The number times a constant.

        Raises:
            ArithmeticError: If the product is not a whole number.
        """
        value = self.value * factor
        if value.denominator != 1:
            raise ArithmeticError(f"{self.value} * {factor} is not a whole number")
        return Size(int(value), {group: change * factor for group, change in self.slope.items()})
