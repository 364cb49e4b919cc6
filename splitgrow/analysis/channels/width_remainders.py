"""Remainders that forward looks at, as in ``assert channels % groups == 0``: growth keeps them.

The steps of groups are known only when all constraints are stated: an op that cuts a width into
equal sections makes it grow in steps that keep the remainder anyhow.
"""

from __future__ import annotations

from splitgrow.analysis.channels.channel_axes import Size
from splitgrow.analysis.channels.channel_groups import Groups


class Remainders:
    """Numbers whose remainders on division must stay."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._kept: list[tuple[Size, Size, str]] = []

    def keep(self, size: Size, divisor: Size, reason: str) -> None:
        """States that growth may not change the remainder of a division."""
        self._kept.append((size, divisor, reason))

    def settle(self) -> None:
        """Bundles the units of groups, or fixes the groups, where a remainder would change."""
        for size, divisor, reason in self._kept:
            if self._stay_multiples(size, divisor):
                continue
            self._groups.fix_size(divisor, reason)
            if self._stays(size, divisor.value):
                continue
            axis = self._groups.axis_of(size)
            if axis is not None and self._groups.length(axis) % divisor.value == 0:
                self._groups.bundle(axis, divisor.value, reason)
            if not self._stays(size, divisor.value):
                self._groups.fix_size(size, reason)
        self._kept.clear()

    def _stay_multiples(self, size: Size, divisor: Size) -> bool:
        """Whether both rise together, such as a width and the number of heads in it."""
        if size.value % divisor.value or not self._groups.slope(divisor):
            return False
        times = size.value // divisor.value
        slope = self._groups.slope(divisor)
        return self._groups.slope(size) == {group: times * rise for group, rise in slope.items()}

    def _stays(self, size: Size, divisor: int) -> bool:
        slope = self._groups.slope(size)
        return all((change / divisor).denominator == 1 for change in slope.values())
