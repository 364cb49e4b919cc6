"""Channel axes as lists of positions, for tests that compare them with the algebra."""

from __future__ import annotations

from typing import Any

from splitgrow.analysis.channels.channel_axes import Axis
from splitgrow.analysis.channels.channel_groups import Groups


def positions(groups: Groups, axis: Axis) -> list[tuple[Any, ...]]:
    """Every position of an axis as (group, unit, copy): the independent picture of its runs."""
    found: list[tuple[Any, ...]] = []
    for run in groups.resolve(axis):
        if run.group is None:
            found.extend(("constant",) for _ in range(run.repeat))
        else:
            units = range(groups.width(run.group))
            found.extend((run.group, unit, copy) for unit in units for copy in range(run.repeat))
    return found
