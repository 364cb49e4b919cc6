"""Units that must be silent at birth: zeros wherever they appear, until they learn.

Where all channels share a statistic, as in an RMS norm, new channels may only join as zeros: those
change the statistic in a known way, which the norm can make up for exactly.
"""

from __future__ import annotations

from splitgrow.analysis.channels.channel_axes import Axis, groups_of
from splitgrow.analysis.channels.channel_groups import Groups


class ZeroChannels:
    """Which axes need silent units, and where on the way zeros would become something else."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._needed: list[Axis] = []
        self._heard: list[tuple[Axis, str]] = []

    def need(self, axis: Axis) -> None:
        """Has new units on the axis start as zeros."""
        self._needed.append(axis)

    def not_zero(self, axis: Axis, reason: str) -> None:
        """States that an op on the way makes something else than zeros of zeros."""
        if self._groups.can_grow(axis):
            self._heard.append((axis, reason))

    def settle(self) -> frozenset[int]:
        """Fixes what would have to be silent and is not; returns the groups that are."""
        silent = {g for axis in self._needed for g in groups_of(self._groups.resolve(axis))}
        for axis, reason in self._heard if silent else ():
            if silent.intersection(groups_of(self._groups.resolve(axis))):
                self._groups.fix(axis, reason)
        return frozenset(silent)
