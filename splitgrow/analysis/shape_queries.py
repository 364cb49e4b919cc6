"""Tensors that forward makes for nothing, and those that it looks at for their shapes only."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch import Tensor
from torch.utils import _pytree as pytree

from splitgrow.analysis.ops import entry_of
from splitgrow.analysis.start_ops import writes_into_operand
from splitgrow.analysis.trace import Source, Step, refs_of

_PICKING = (operator.getitem, "select", "narrow")
_ABOUT_SHAPES = ("shape", "device", "dtype", "ndim", "layout")


def unused(steps: Sequence[Step]) -> frozenset[int]:
    """The steps whose results no other needs, such as weights of attention that nobody looks at.

    They run all the same, so their shapes must fit; their values may change. A number may decide
    what forward does, and an op in place is of use by itself. So only the steps count that do
    nothing but make tensors.
    """
    needed: set[int] = set()
    for index in range(len(steps) - 1, -1, -1):
        step = steps[index]
        if index in needed or not _only_makes_tensors(step):
            needed.update(ref.step for ref in refs_of(step))
            needed.add(index)
    return frozenset(range(len(steps))) - needed


def _only_makes_tensors(step: Step) -> bool:
    """Whether an op that is known makes tensors, and cannot write into others."""
    made = pytree.tree_leaves(step.example)
    known = step.module is None and entry_of(step.target) is not None
    flags = [leaf for leaf in pytree.tree_leaves((step.args, step.kwargs)) if leaf is True]
    writes = writes_into_operand(step) or "out" in step.kwargs or bool(flags)  # inplace=True
    return bool(made) and known and not writes and all(isinstance(leaf, Tensor) for leaf in made)


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
        if step.target in _PICKING and index in uses and all(map(asks_about_shape, uses[index]))
    )


def asks_about_shape(step: Step) -> bool:
    """Whether a step asks a tensor for its shape, or something else that is no value of it."""
    if isinstance(step.target, Source):
        return False
    named = step.target is getattr and len(step.args) == 2 and step.args[1] in _ABOUT_SHAPES
    return named or step.target in ("size", "dim")
