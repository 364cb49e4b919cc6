"""Trials of a channel graph: forward is traced again as if all that can grow had grown.

The trace follows numbers as far as Python lets it: it cannot see the use of a width in `range`, in
indexing or in a library. So the run is repeated with every width one step larger, on fake tensors.
It must run the same ops, with the same plain numbers, to the shapes that the graph foretells; the
groups that keep it from doing so are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.analysis.channel_graph import ChannelGraph, HeldNumber
from splitgrow.analysis.channels.channel_axes import Run
from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.analysis.leaf_modules import Wider
from splitgrow.analysis.ops.op import Shaped, leaves_of
from splitgrow.analysis.trace import Ref, Step
from splitgrow.analysis.tracer import record_wider
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.steady_runs import without_dropout


@dataclass(frozen=True)
class Trial:
    """A channel graph, and a run that it has to explain.

    Attributes:
        graph: The channel graph.
        numbers: The numbers that modules hold.
        steps: The steps of the run.
        values: The results of the rules for each step.
        training: Whether narrower widths are to be tried out in training mode.
        strict: Whether all arguments of ops must then agree.
    """

    graph: ChannelGraph
    numbers: Sequence[HeldNumber]
    steps: Sequence[Step]
    values: Sequence[Any]
    training: bool = False
    strict: bool = False


def widens(model: nn.Module, inputs: ExampleCall, trial: Trial, *, training: bool) -> bool:
    """Whether forward runs the same ops when all that can grow has grown.

    In training mode that is strict: all other arguments of the ops, such as functions and texts,
    must also be those of the run in evaluation mode.
    """
    growth = dict.fromkeys(growing_groups_in(trial.graph), 1)
    return not _difference(model, inputs, trial, growth, training=training, strict=training)


def runs_alike(
    model: nn.Module, inputs: ExampleCall, trial: Trial, growth: Mapping[int, int]
) -> bool:
    """Whether a model that has grown runs, in evaluation mode, the very ops of a run from before.

    Args:
        model: The model, with its new blocks in place.
        inputs: The example call.
        trial: Its graph, and its run in evaluation mode before it grew.
        growth: The units that its groups have gained.

    Raises:
        MemoryError: If there is too little memory.
    """
    grown = trial.graph.groups.grown(growth)
    try:
        steps = record_wider(model, inputs, Wider(), training=False)
    except MemoryError:  # no fault of the model's
        raise
    except Exception:  # noqa: BLE001 - any, on tensors without values
        return False
    return not _first_difference((trial.steps, trial.values), steps, grown, strict=True)


def fix_what_widening_breaks(model: nn.Module, inputs: ExampleCall, trial: Trial) -> None:
    """Fixes the groups that forward would not follow if they grew.

    Args:
        model: The model. It is not changed.
        inputs: The example call.
        trial: Its channel graph, and its run in evaluation mode.
    """

    def difference(groups: Sequence[int]) -> str:
        growth = dict.fromkeys(groups, 1)
        return _difference(model, inputs, trial, growth, training=False, strict=False)

    graph = trial.graph
    while growing := growing_groups_in(graph):
        found = culprits_in(growing, difference)
        if not found or difference(()):  # no two runs are the same, so nothing can be told
            return
        for group, reason in found.items():
            graph.groups.fix((Run(group, 1),), reason)


def narrowing_breaks(
    model: nn.Module, inputs: ExampleCall, trials: Sequence[Trial], gone: Mapping[int, int]
) -> dict[int, str]:
    """The groups that forward would not follow if they had fewer units, each with the reason.

    A graph that holds at any greater width need not hold at a smaller one: a comparison may turn
    round, or a dimension get size one.

    Args:
        model: The model. It is not changed.
        inputs: The example call.
        trials: Its channel graph, and each run that this has to explain.
        gone: The number of units that each group loses.
    """
    found: dict[int, str] = {}
    for trial in trials:

        def difference(groups: Sequence[int], trial: Trial = trial) -> str:
            growth = {group: -gone[group] for group in groups}
            return _difference(
                model, inputs, trial, growth, training=trial.training, strict=trial.strict
            )

        found |= culprits_in([group for group in gone if group not in found], difference)
    return found


def _difference(
    model: nn.Module,
    inputs: ExampleCall,
    trial: Trial,
    growth: Mapping[int, int],
    *,
    training: bool,
    strict: bool,
) -> str:
    """The first difference in forward when groups have other widths; empty if there is none.

    Raises:
        MemoryError: If there is too little memory.
    """
    grown = trial.graph.groups.grown(growth)
    try:
        wider = _wider(trial.graph, grown, trial.numbers)
        steps = record_wider(model, inputs, wider, training=training)
    except MemoryError:  # no fault of the model's
        raise
    except Exception as error:  # noqa: BLE001 - any, at another width
        return f"forward fails when it is {_compared(growth)}: {type(error).__name__}: {error}"
    place = _first_difference((trial.steps, trial.values), steps, grown, strict=strict)
    other = f"forward does something else when it is {_compared(growth)}, at {place}"
    return other if place else ""


def _compared(growth: Mapping[int, int]) -> str:
    return "narrower" if any(units < 0 for units in growth.values()) else "wider"


def growing_groups_in(graph: ChannelGraph) -> list[int]:
    """The groups that some layer can be asked to grow."""
    return list(dict.fromkeys(g for node in graph.sized() for g in graph.growing_groups(node.outs)))


def culprits_in(
    groups: Sequence[int], difference: Callable[[Sequence[int]], str]
) -> dict[int, str]:
    """The groups whose growth makes a difference, each with it; found by repeated halving."""
    reason = difference(groups)
    if not reason:
        return {}
    if len(groups) == 1:
        return {groups[0]: reason}
    half = len(groups) // 2
    found = culprits_in(groups[:half], difference) | culprits_in(groups[half:], difference)
    return found or dict.fromkeys(groups, reason)  # only together do they make one


def _wider(graph: ChannelGraph, grown: Groups, numbers: Sequence[HeldNumber]) -> Wider:
    sizes: dict[str, tuple[int, int]] = {}
    tensors: dict[str, dict[int, int]] = {}
    for node in graph.nodes.values():
        size = (grown.length(node.ins), grown.length(node.outs))
        if node.use is not None:
            pairs = zip((node.use.ins, node.use.outs), size, strict=True)
            tensors[node.name] = {dim: length for dim, length in pairs if dim is not None}
            continue
        if node.followed and size != (
            graph.groups.length(node.ins),
            graph.groups.length(node.outs),
        ):
            sizes[node.name] = size
    held = {(n.module, n.attribute): grown.length(n.axis) for n in numbers}
    return Wider(sizes, held, tensors)


def _first_difference(
    run: tuple[Sequence[Step], Sequence[Any]], wide: Sequence[Step], grown: Groups, *, strict: bool
) -> str:
    """The first difference between the ops of two runs; empty if there is none."""
    for one, value, other in zip(*run, wide, strict=False):
        same = one.module == other.module
        if one.module is None:  # a layer that has grown is of another type
            same = same and one.name == other.name and (one.target == other.target or not strict)
        given, others = (
            without_dropout(each.target, each.args, each.kwargs) for each in (one, other)
        )
        if not (same and _alike(given, others, strict=strict)):
            return one.place
        if not _foretold(value, other.example, grown):
            return one.place
    return "" if len(run[0]) == len(wide) else run[0][-1].place


def _alike(one: Any, other: Any, *, strict: bool) -> bool:
    """Whether arguments stand for the same.

    Only numbers and references can tell if a width is used; strictly, all arguments must agree.
    """
    if isinstance(one, (Ref, bool, int, float, complex)) or isinstance(other, Ref):
        return type(one) is type(other) and bool(one == other)
    if isinstance(one, (tuple, list)):
        if not isinstance(other, (tuple, list)) or len(one) != len(other):
            return False
        return all(_alike(*pair, strict=strict) for pair in zip(one, other, strict=True))
    if isinstance(one, slice) and isinstance(other, slice):
        bounds = [(each.start, each.stop, each.step) for each in (one, other)]
        return _alike(*bounds, strict=strict)
    if isinstance(one, dict) and isinstance(other, dict):
        keys = one.keys()
        return keys == other.keys() and all(_alike(one[k], other[k], strict=strict) for k in keys)
    return not strict or one is other or (isinstance(one, _VALUES) and bool(one == other))


_VALUES = (str, torch.device)
"""Types whose equal values are the same; equal values of other types may yet differ."""


def _foretold(value: Any, example: Any, grown: Groups) -> bool:
    """Whether tensors have the shapes that the graph gives them."""
    pairs = zip(leaves_of(value), leaves_of(example), strict=False)
    return all(
        tuple(map(grown.length, answer.axes)) == tuple(tensor.shape)
        for answer, tensor in pairs
        if isinstance(answer, Shaped) and isinstance(tensor, Tensor)
    )
