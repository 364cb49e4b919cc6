"""Which units go: those with the lowest scores, of the groups that may lose some."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.analysis.channels.channel_axes import groups_of
from splitgrow.analysis.units import places_on
from splitgrow.errors import FixedWidthError
from splitgrow.growth.planning import find_node

Scope: TypeAlias = Literal["global", "layer"]
"""Whether the weakest units of all groups go, or of each group the same share."""


@dataclass(frozen=True)
class Candidates:
    """The groups that may lose units.

    Attributes:
        widths: By group its number of units.
        steps: By group the number of units that go together, for some kernel or for rounding.
        stays: By group the number of units that stay in any case.
    """

    widths: Mapping[int, int]
    steps: Mapping[int, int]
    stays: Mapping[int, int]

    @property
    def units(self) -> int:
        """The number of units of all groups."""
        return sum(self.widths.values())


def find_candidates(
    graph: ChannelGraph,
    layers: Collection[int | str] | None,
    ignore: Collection[int | str],
    keep: float,
    round_to: int,
) -> Candidates:
    """The groups that may lose units.

    Args:
        graph: The channel graph.
        layers: The layers whose units may go; None for all but those that make the outputs.
        ignore: The layers whose units stay.
        keep: The share of each group's units that stays.
        round_to: The number of which widths that stay are multiples.

    Raises:
        TypeError: If a name is of another type.
        ValueError: If there is no such layer.
        FixedWidthError: If a named layer's width is fixed, or there is no group that can shrink.
    """
    kept = {g for layer in ignore for g in _groups_at(graph, find_node(graph, layer))}
    nodes = graph.sized() if layers is None else [find_node(graph, layer) for layer in layers]
    if layers is None:
        kept |= _returned(graph)
    found: dict[int, None] = {}
    for node in nodes:
        groups = graph.growing_groups(node.outs)
        if layers is not None and not groups:
            raise FixedWidthError(f"`{node.name}` cannot shrink: {graph.reason(node)}")
        found.update(dict.fromkeys(groups))
    widths = {
        group: graph.groups.width(group)
        for group in found
        if group not in kept and graph.groups.width(group) > 1
    }
    if not widths:
        raise FixedWidthError("no layer may lose units: see `model.layers` for the reasons")
    steps = {group: _step(graph, group, round_to) for group in widths}
    stays = {group: max(1, math.ceil(keep * width)) for group, width in widths.items()}
    return Candidates(widths, steps, stays)


def _groups_at(graph: ChannelGraph, node: LayerNode) -> list[int]:
    return groups_of(graph.groups.resolve(node.outs))


def _returned(graph: ChannelGraph) -> set[int]:
    """The groups whose units the model returns, or that inputs look up."""
    axes = [axis for axes in graph.outputs for axis in axes]
    axes += [node.ins for node in graph.nodes.values() if node.looks_up]
    return {group for axis in axes for group in groups_of(graph.groups.resolve(axis))}


def _step(graph: ChannelGraph, group: int, round_to: int) -> int:
    """The smallest number of units that leaves every width a multiple, if it was one."""
    step = graph.multiples.get(group, (1, ""))[0]
    for node in graph.sized():
        times = graph.multiplicity(node.outs, group)
        if times:
            step = math.lcm(step, round_to // math.gcd(round_to, times))
    return step


def weakest_units(
    candidates: Candidates,
    scores: Mapping[int, Tensor],
    amount: float,
    scope: Scope,
    *,
    comparable: bool,
) -> dict[int, list[int]]:
    """The units with the lowest scores.

    Args:
        candidates: The groups that may lose units.
        scores: By group a number for each unit. Groups without are left alone.
        amount: The share of the units that goes: of all of these groups, or of each.
        scope: Which of these.
        comparable: Whether scores of different groups are on one scale.

    Returns:
        The units by group, in order; groups that lose none are left out.
    """
    order = {group: own.argsort(stable=True) for group, own in scores.items()}
    if scope == "layer":
        counts = {group: int(amount * candidates.widths[group] + 1e-9) for group in scores}
    else:
        counts = _counts_of_all(candidates, scores, order, amount, comparable=comparable)
    found = {}
    for group, count in counts.items():
        width, step = candidates.widths[group], candidates.steps[group]
        count = min(count, width - candidates.stays[group])
        count = _whole_steps(width, count, step)
        if count > 0:
            found[group] = sorted(order[group][:count].tolist())
    return found


def _whole_steps(width: int, count: int, step: int) -> int:
    """The largest number of units, at most a count, that leaves a multiple of a step.

    Where the width is no multiple itself, whole steps go.
    """
    if width % step == 0:
        return count - count % step
    to_multiple = width % step
    return to_multiple + (count - to_multiple) // step * step if count >= to_multiple else 0


def _counts_of_all(
    candidates: Candidates,
    scores: Mapping[int, Tensor],
    order: Mapping[int, Tensor],
    amount: float,
    *,
    comparable: bool,
) -> dict[int, int]:
    """How many units of each group are among the weakest of all."""
    groups: list[int] = []
    found: list[Tensor] = []
    for group, own in scores.items():
        own = own.double()
        if not comparable:
            own = own / own.mean().clamp_min(torch.finfo(own.dtype).tiny)
        may_go = candidates.widths[group] - candidates.stays[group]
        found.append(own[order[group]][:may_go])
        groups += [group] * may_go
    total = sum(candidates.widths[group] for group in scores)
    many = min(int(amount * total + 1e-9), len(groups))
    counts = dict.fromkeys(scores, 0)
    for at in torch.cat(found).argsort(stable=True)[:many].tolist() if found else ():
        counts[groups[at]] += 1
    return counts


def as_request(graph: ChannelGraph, units: Mapping[int, Iterable[int]]) -> dict[str, list[int]]:
    """Units as the channels of layers: of the first layer that makes each group.

    Args:
        graph: The channel graph.
        units: The units by group.
    """
    wanted = {group: {*own} for group, own in units.items()}
    found: dict[str, list[int]] = {}
    for node in graph.sized():
        here = [group for group in wanted if group in graph.growing_groups(node.outs)]
        if here:
            own = {group: wanted.pop(group) for group in here}
            found[node.name] = [
                position
                for position, (unit, _) in enumerate(places_on(graph.groups, node.outs))
                if unit.home in own and unit.nth in own[unit.home]
            ]
    return found
