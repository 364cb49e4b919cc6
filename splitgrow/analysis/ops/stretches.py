"""Stretches of dimensions that hold the same elements before and after a reshape."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Stretch = tuple[slice, slice]
"""Neighbouring dimensions before, and those after that hold the same elements."""


def matched(
    old: Sequence[int], new: Sequence[int], cost: Callable[[slice, slice], float]
) -> list[Stretch]:
    """Both shapes cut into the smallest stretches of equally many elements.

    A dimension of size one can belong to the stretch before it, to the one behind it, or be one of
    its own. The least cost decides, and then the greatest number of stretches.

    Args:
        old: The sizes before; none is zero.
        new: The sizes after, of as many elements.
        cost: The cost of one stretch, a measure of the widths that could not grow.
    """
    outer = [math.prod(old[:i]) for i in range(len(old) + 1)]
    other = [math.prod(new[:j]) for j in range(len(new) + 1)]
    cuts = sorted(set(outer) & set(other))
    points = [(i, j) for i, a in enumerate(outer) for j, b in enumerate(other) if a == b]
    best: dict[tuple[int, int], tuple[float, int, list[Stretch]]] = {(0, 0): (0.0, 0, [])}
    for i, j in points[1:]:
        reached = []
        for (first, last), (spent, count, stretches) in best.items():
            apart = cuts.index(outer[i]) - cuts.index(outer[first])
            if first <= i and last <= j and apart <= 1:
                stretch = (slice(first, i), slice(last, j))
                reached.append((spent + cost(*stretch), count - 1, [*stretches, stretch]))
        best[i, j] = min(reached, key=lambda way: way[:2])
    return best[len(old), len(new)][2]
