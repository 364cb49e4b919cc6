"""How steeply a number rises with a size: the slope of their logarithms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Slope:
    """The exponent p of ``number = constant * size ** p``.

    Attributes:
        value: The exponent, by least squares over all points.
        error: Its standard error.
        points: How many points there were.
    """

    value: float
    error: float
    points: int

    @property
    def text(self) -> str:
        """The exponent with its error, for tables."""
        return f"{self.value:.2f} ± {self.error:.2f}"


def slope(points: Sequence[tuple[float, float]]) -> Slope | None:
    """The slope through points of size and number; None if there are fewer than three sizes.

    Example:
        >>> slope([(1.0, 3.0), (2.0, 12.0), (4.0, 48.0)]).text
        '2.00 ± 0.00'
    """
    if len({size for size, _ in points}) < 3 or min(number for _, number in points) <= 0:
        return None
    xs, ys = ([math.log(each) for each in side] for side in zip(*points, strict=True))
    x, y, count = sum(xs) / len(xs), sum(ys) / len(ys), len(points)
    spread = sum((a - x) ** 2 for a in xs)
    value = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / spread
    left = sum((b - y - value * (a - x)) ** 2 for a, b in zip(xs, ys, strict=True))
    return Slope(value, math.sqrt(left / max(1, count - 2) / spread), count)


def upper_half(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points of the larger sizes: half of the sizes, and the one in the middle."""
    sizes = sorted({size for size, _ in points})
    return [point for point in points if point[0] >= sizes[(len(sizes) - 1) // 2]] if sizes else []
