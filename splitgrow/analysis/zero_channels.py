"""Units that must be silent at birth: zeros wherever they appear, until they learn.

Where all channels share a statistic, as in an RMS norm, new channels must be zeros: these change
the statistic in a known way, for which the norm can compensate exactly.
"""

from __future__ import annotations

from splitgrow.analysis.channels.channel_axes import Axis, groups_of
from splitgrow.analysis.channels.channel_groups import Groups


class ZeroChannels:
    """The axes that need silent units, and the ops on the way that make other values of zeros."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._needed: list[Axis] = []
        self._heard: list[tuple[Axis, str]] = []

    def need(self, axis: Axis) -> None:
        """States that new units on the axis start as zeros."""
        self._needed.append(axis)

    def not_zero(self, axis: Axis, reason: str) -> None:
        """States that an op on the way makes other values than zeros of zeros."""
        if self._groups.can_grow(axis):
            self._heard.append((axis, reason))

    def settle(self) -> frozenset[int]:
        """Fixes the groups that must be silent but cannot be; returns all that must be."""
        silent = {g for axis in self._needed for g in groups_of(self._groups.resolve(axis))}
        for axis, reason in self._heard if silent else ():
            if silent.intersection(groups_of(self._groups.resolve(axis))):
                self._groups.fix(axis, reason)
        return frozenset(silent)
