"""Which units go: those with the lowest scores, of the groups that may lose some."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.analysis.channels.channel_axes import groups_of
from splitgrow.errors import FixedWidthError
from splitgrow.growth.planning import find_node
from splitgrow.pruning.shrinking.chosen_units import Chosen

PruneScope: TypeAlias = Literal["global", "layer"]
"""Whether the weakest units of all groups go, or of each group the same share."""
Request: TypeAlias = Mapping[int | str, int | Sequence[int]]
"""By layer the channels that go, as for `shrink`."""


@dataclass(frozen=True)
class PruneCandidates:
    """The groups that may lose units.

    Attributes:
        widths: By group its number of units.
        first: By group that number before the first step of a pruning.
        steps: By group the number of units that some kernel wants to go together.
        multiples: By group the number of which the units that stay are a multiple.
        keep: The share of each group's first units that stays in any case.
    """

    widths: Mapping[int, int]
    first: Mapping[int, int]
    steps: Mapping[int, int]
    multiples: Mapping[int, int]
    keep: float

    def may_go(self, group: int) -> int:
        """The number of units of a group that may go."""
        stays = max(1, math.ceil(self.keep * self.first[group] - _TINY))
        return max(0, self.widths[group] - stays)

    def wanted(self, groups: Iterable[int], amount: float) -> int:
        """The number of units of some groups that go, so that a share of the first ones is gone."""
        groups = [*groups]
        first, now = (sum(n[group] for group in groups) for n in (self.first, self.widths))
        return max(0, int(amount * first + _TINY) - (first - now))

    def whole(self, group: int, count: int) -> int:
        """The largest number of units, at most a count, that can go from a group."""
        step, multiple, width = self.steps[group], self.multiples[group], self.widths[group]
        counts = range(min(count, self.may_go(group)), 0, -1)
        return next((n for n in counts if n % step == 0 and (width - n) % multiple == 0), 0)


_TINY = 1e-9
"""The rounding of a share times a number of units."""


def prunable_groups(
    graph: ChannelGraph,
    layers: Collection[int | str] | None,
    ignore: Collection[int | str] | None,
) -> dict[int, int]:
    """The groups that may lose units, with their numbers of units.

    Args:
        graph: The channel graph.
        layers: The layers whose units may go; None for all but those that make the outputs.
        ignore: The layers whose units stay; None for none.

    Raises:
        TypeError: If a name is of another type.
        ValueError: If there is no such layer, or none is named.
        FixedWidthError: If a named layer's width is fixed, or there is no group that can shrink.
    """
    if layers is not None and not layers:
        raise ValueError("layers is empty: leave it out for all layers but the outputs")
    kept = {g for layer in ignore or () for g in _groups_at(graph, find_node(graph, layer))}
    nodes = graph.sized() if layers is None else [find_node(graph, layer) for layer in layers]
    if layers is None:
        kept |= _returned(graph)
    found: dict[int, None] = {}
    for node in nodes:
        groups = graph.growing_groups(node.outs)
        if layers is not None and not groups:
            raise FixedWidthError(f"`{node.name}` cannot shrink: {graph.reason(node)}")
        found.update(dict.fromkeys(groups))
    widths = {group: graph.groups.width(group) for group in found if group not in kept}
    if max(widths.values(), default=1) == 1:
        raise FixedWidthError(
            "no layer may lose units: all that could are the model's outputs, are in `ignore`, or "
            "have one unit; `model.layers` has the reasons of those that cannot"
        )
    return widths


def names_of(what: str, given: object) -> tuple[int | str, ...] | None:
    """Layers as users give them, in a list; None for None.

    Raises:
        TypeError: If it is no list.
    """
    if given is None:
        return None
    if isinstance(given, (str, int)) or not isinstance(given, Iterable):
        raise TypeError(f"{what} must be a list of layers by name or index, got {given!r}")
    return tuple(given)


def _groups_at(graph: ChannelGraph, node: LayerNode) -> list[int]:
    return groups_of(graph.groups.resolve(node.outs))


def _returned(graph: ChannelGraph) -> set[int]:
    """The groups whose units the model returns, or that inputs look up."""
    tables = (node.ins for node in graph.nodes.values() if node.looks_up)
    rows = (group for axis in tables for group in groups_of(graph.groups.resolve(axis)))
    return {*graph.output_groups(), *rows}


def multiple_of(graph: ChannelGraph, group: int, round_to: int) -> int:
    """The smallest number of units that makes a multiple of channels in every layer."""
    times = {graph.multiplicity(node.outs, group) for node in graph.sized()} - {0}
    return math.lcm(*(round_to // math.gcd(round_to, each) for each in times))


def weakest_units(
    candidates: PruneCandidates,
    scores: Mapping[int, Tensor],
    amount: float,
    scope: PruneScope,
    *,
    comparable: bool,
) -> dict[int, list[int]]:
    """The units with the lowest scores.

    Args:
        candidates: The groups that may lose units.
        scores: By group a number for each unit. Groups without are left alone.
        amount: The share of the first units that is gone afterwards: of all groups with scores, or
            of each.
        scope: Which of these.
        comparable: Whether scores of different groups are on one scale.

    Returns:
        The units by group, in order; groups that lose none are left out.
    """
    order = {group: own.argsort(stable=True) for group, own in scores.items()}
    if scope == "layer":
        counts = {group: candidates.wanted([group], amount) for group in scores}
    else:
        counts = _counts_of_all(candidates, scores, order, amount, comparable=comparable)
    whole = {group: candidates.whole(group, count) for group, count in counts.items()}
    return {group: sorted(order[group][:count].tolist()) for group, count in whole.items() if count}


def _counts_of_all(
    candidates: PruneCandidates,
    scores: Mapping[int, Tensor],
    order: Mapping[int, Tensor],
    amount: float,
    *,
    comparable: bool,
) -> dict[int, int]:
    """How many units of each group are among the weakest of all."""
    groups: list[int] = []
    found = [torch.zeros(0, dtype=torch.float64)]
    for group, own in scores.items():
        own = own.double()
        if not comparable:
            own = own / own.abs().mean().clamp_min(torch.finfo(own.dtype).tiny)
        found.append(own[order[group]][: candidates.may_go(group)])
        groups += [group] * len(found[-1])
    many = candidates.wanted(scores, amount)
    counts = dict.fromkeys(scores, 0)
    for at in torch.cat(found).argsort(stable=True)[:many].tolist():
        counts[groups[at]] += 1
    return counts


def as_request(graph: ChannelGraph, units: Mapping[int, Iterable[int]]) -> Request:
    """Units as the channels of layers: of the first layer that makes each group.

    Args:
        graph: The channel graph.
        units: The units by group.
    """
    wanted = {group: [*own] for group, own in units.items()}
    found: dict[int | str, int | Sequence[int]] = {}
    for node in graph.sized():
        here = [group for group in wanted if group in graph.growing_groups(node.outs)]
        if here:
            own = Chosen(graph.groups, {group: wanted.pop(group) for group in here})
            found[node.name] = own.on(node.outs).nonzero().flatten().tolist()
    return found
