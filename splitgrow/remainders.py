"""Remainders that forward looks at, as in ``assert channels % groups == 0``: growth keeps them.

How groups grow is known only when all has been stated: what cuts a width into equal sections has it
grow in steps that keep a remainder anyhow.
"""

from __future__ import annotations

from splitgrow.axes import Size
from splitgrow.groups import Groups


class Remainders:
    """Numbers of which what is left of a division must stay."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._kept: list[tuple[Size, int, str]] = []

    def keep(self, size: Size, divisor: int, reason: str) -> None:
        """States that growth may not change what is left when a number is divided."""
        if self._groups.slope(size):
            self._kept.append((size, divisor, reason))

    def settle(self) -> None:
        """Has groups grow by so many units at once, or fixes them, where a remainder would move."""
        for size, divisor, reason in self._kept:
            if self._stays(size, divisor):
                continue
            axis = self._groups.axis_of(size)
            if axis is not None and self._groups.length(axis) % divisor == 0:
                self._groups.bundle(axis, divisor, reason)
            if not self._stays(size, divisor):
                self._groups.fix_size(size, reason)
        self._kept.clear()

    def _stays(self, size: Size, divisor: int) -> bool:
        slope = self._groups.slope(size)
        return all((change / divisor).denominator == 1 for change in slope.values())
