"""Trying a channel graph out: forward is recorded again as if all that can grow had grown.

Numbers are followed as far as Python lets them be: what `range`, indexing or a library makes of a
width cannot be seen. So the run is repeated with every width one step larger, on fake tensors. It
must take the same steps, with the same plain numbers, to the shapes that the graph foretells; what
keeps it from doing so is fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitgrow.axes import Run
from splitgrow.graph import ChannelGraph, HeldNumber
from splitgrow.groups import Groups
from splitgrow.recording import Wider, record_wider
from splitgrow.rules import Shaped
from splitgrow.steps import Ref, Step


def fix_what_widening_breaks(
    model: nn.Module,
    inputs: tuple[Any, ...],
    graph: ChannelGraph,
    numbers: Sequence[HeldNumber],
    run: tuple[Sequence[Step], Sequence[Any]],
) -> None:
    """Fixes the groups that forward would not follow if they grew.

    Args:
        model: The model. It is not changed.
        inputs: The positional arguments of the example call.
        graph: Its channel graph.
        numbers: The numbers that modules hold.
        run: The steps of the run in evaluation mode, and what the rules made of each.
    """

    def difference(groups: Sequence[int]) -> str:
        grown = graph.groups.grown(dict.fromkeys(groups, 1))
        try:
            steps = record_wider(model, inputs, _wider(graph, grown, numbers))
        except Exception as error:  # noqa: BLE001 - whatever forward raises at another width
            return f"forward fails when it is wider: {type(error).__name__}: {error}"
        place = _first_difference(run, steps, grown)
        return f"forward does something else when it is wider, at {place}" if place else ""

    while growing := _growing(graph):
        found = _culprits(growing, difference)
        if not found or difference(()):  # the run is never twice the same, so nothing can be told
            return
        for group, reason in found.items():
            graph.groups.fix((Run(group, 1),), reason)


def _growing(graph: ChannelGraph) -> list[int]:
    """The groups that some layer can be asked to grow."""
    return list(dict.fromkeys(g for node in graph.sized() for g in graph.growing_groups(node.outs)))


def _culprits(groups: Sequence[int], difference: Callable[[Sequence[int]], str]) -> dict[int, str]:
    """The groups whose growth makes a difference, with what it is; halved until they are found."""
    reason = difference(groups)
    if not reason:
        return {}
    if len(groups) == 1:
        return {groups[0]: reason}
    half = len(groups) // 2
    found = _culprits(groups[:half], difference) | _culprits(groups[half:], difference)
    return found or dict.fromkeys(groups, reason)  # only together do they make one


def _wider(graph: ChannelGraph, grown: Groups, numbers: Sequence[HeldNumber]) -> Wider:
    sizes = {}
    for node in graph.nodes.values():
        size = (grown.length(node.ins), grown.length(node.outs))
        if node.followed and size != (
            graph.groups.length(node.ins),
            graph.groups.length(node.outs),
        ):
            sizes[node.name] = size
    held = {(n.module, n.attribute): grown.length(n.axis) for n in numbers}
    return Wider(sizes, held)


def _first_difference(
    run: tuple[Sequence[Step], Sequence[Any]], wide: Sequence[Step], grown: Groups
) -> str:
    """Where two runs first differ in what they do; empty if they do not."""
    for one, value, other in zip(*run, wide, strict=False):
        same = (one.name, one.module) == (other.name, other.module)
        alike = same and _alike(one.args, other.args) and _alike(one.kwargs, other.kwargs)
        if not alike or not _foretold(value, other.example, grown):
            return one.place
    return "" if len(run[0]) == len(wide) else run[0][-1].place


def _alike(one: Any, other: Any) -> bool:
    """Whether arguments stand for the same; only numbers and what stands for tensors can tell."""
    if isinstance(one, (Ref, bool, int, float, complex)) or isinstance(other, Ref):
        return type(one) is type(other) and bool(one == other)
    if isinstance(one, (tuple, list)):
        if not isinstance(other, (tuple, list)) or len(one) != len(other):
            return False
        return all(_alike(*pair) for pair in zip(one, other, strict=True))
    if isinstance(one, slice) and isinstance(other, slice):
        return _alike((one.start, one.stop, one.step), (other.start, other.stop, other.step))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    return True


def _foretold(value: Any, example: Any, grown: Groups) -> bool:
    """Whether tensors have the shapes that the graph gives them."""
    answers = pytree.tree_leaves(value, is_leaf=lambda leaf: isinstance(leaf, Shaped))
    pairs = zip(answers, pytree.tree_leaves(example), strict=False)
    return all(
        tuple(map(grown.length, answer.axes)) == tuple(tensor.shape)
        for answer, tensor in pairs
        if isinstance(answer, Shaped) and isinstance(tensor, Tensor)
    )
