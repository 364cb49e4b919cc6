"""The weakest units of all layers together that go until a model fits a budget."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.analysis.units import Unit, places_on
from splitgrow.grower.budget import Budget
from splitgrow.grower.candidates import Candidates
from splitgrow.grower.ladder import lost_parameters
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.multiply_adds import MacsCounter
from splitgrow.pruning.shrinking.copies import shrink_copy_

KEPT = 0.1
"""The share of each group's units that stays in any case."""


class _Part(NamedTuple):
    """Units of a group that go together, and how strong they are beside the others'."""

    score: float
    group: int
    units: tuple[int, ...]


def units_beyond(
    model: nn.Module,
    candidates: Candidates,
    budget: Budget,
    scores: Mapping[int, Tensor],
    round_to: int = 1,
) -> dict[str, list[int]]:
    """The channels that go, by layer, so that a model fits a budget.

    The scores of a group's units count relative to their mean, as in DepGraph (Fang et al. 2023,
    https://arxiv.org/abs/2301.12900), so that those of different groups can be compared.

    Args:
        model: A growable model.
        candidates: The groups that may shrink.
        budget: The budget.
        scores: A number for each unit by group; those with the lowest go first.
        round_to: The number of which widths are multiples where units go.

    Raises:
        ValueError: If the model does not fit even with the fewest units.
    """
    history = history_of(model)
    graph, measure = history.graph, MacsCounter(model)
    parts = [
        part
        for name, groups in candidates.groups.items()
        for group in groups
        for part in _parts(graph, name, group, scores[group], round_to)
    ]
    parts.sort(key=lambda part: part.score)  # equal ones keep their order

    def share(count: int) -> float:
        going = parts[:count]
        change = partial(shrink_copy_, request=_channels(graph, candidates, going))
        lost = {group: -len(units) for group, units in _by_group(going).items()}
        now = sum(parameter.numel() for parameter in model.parameters())
        return budget.share(
            lambda: now - lost_parameters(graph, history.modules, lost),
            lambda: next(measure.along([change if going else None])),
        )

    few, many = -1, len(parts)  # `few` are too few
    if share(many) > 1:
        raise ValueError(
            f"{budget!r} does not allow the model with {KEPT:.0%} of the units of each layer"
        )
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if share(middle) <= 1 else (middle, many)
    return _channels(graph, candidates, parts[:many])


def _parts(
    graph: ChannelGraph, name: str, group: int, scores: Tensor, round_to: int
) -> Iterator[_Part]:
    """A group's units in the order in which they go, in steps that fit."""
    axis = graph.nodes[name].outs
    repeat, step = graph.multiplicity(axis, group), graph.multiples.get(group, (1, ""))[0]
    step = math.lcm(step, round_to // math.gcd(round_to, repeat))
    width = graph.groups.length(axis)
    first = next(
        (n for n in range(1, len(scores)) if (width - n * repeat) % round_to == 0), len(scores)
    )
    first = first if round_to > 1 else step
    least = max(1, math.ceil(KEPT * len(scores)))
    order = scores.argsort(stable=True).tolist()
    relative = (scores.double() / scores.double().mean().clamp(min=1e-300)).tolist()
    taken, size = 0, first
    while taken + size <= len(order) - least:
        units = tuple(order[taken : taken + size])
        yield _Part(max(relative[unit] for unit in units), group, units)
        taken, size = taken + size, step


def _by_group(parts: Sequence[_Part]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = defaultdict(list)
    for part in parts:
        found[part.group] += part.units
    return dict(found)


def _channels(
    graph: ChannelGraph, candidates: Candidates, parts: Sequence[_Part]
) -> dict[str, list[int]]:
    """The channels on which units lie, of the layers that stand for their groups."""
    going = {Unit(group, nth) for group, units in _by_group(parts).items() for nth in units}
    found = {
        name: [
            position
            for position, (unit, _) in enumerate(places_on(graph.groups, graph.nodes[name].outs))
            if unit in going and unit.home in groups
        ]
        for name, groups in candidates.groups.items()
    }
    return {name: channels for name, channels in found.items() if channels}
