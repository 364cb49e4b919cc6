"""Parts of tensors that forward looks at for their shapes only."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from splitgrow.analysis.trace import Source, Step, refs_of

_PICKING = (operator.getitem, "select", "narrow")
_ABOUT_SHAPES = ("shape", "device", "dtype", "ndim", "layout")


def shape_only(steps: Sequence[Step]) -> frozenset[int]:
    """The steps that pick a part of a tensor of which only the shape is used.

    Such as the last channel, of which a module counts the words: growth may put another there.
    """
    uses: dict[int, list[Step]] = {}
    for step in steps:
        for ref in refs_of(step):
            uses.setdefault(ref.step, []).append(step)
    return frozenset(
        index
        for index, step in enumerate(steps)
        if step.target in _PICKING and index in uses and all(map(_asks_for_shape, uses[index]))
    )


def _asks_for_shape(step: Step) -> bool:
    if isinstance(step.target, Source):
        return False
    named = step.target is getattr and len(step.args) == 2 and step.args[1] in _ABOUT_SHAPES
    return named or step.target in ("size", "dim")
