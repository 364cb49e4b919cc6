"""From goals to changes of widths: those on the way, rounded to those that fit. Changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.growth.initializers import Initializer, refuse_unfit
from splitgrow.growth.planning import find_growth, make_plan, rounded_up
from splitgrow.layers.tensor_holder import layer_at, split_of
from splitgrow.layers.types import TensorUse
from splitgrow.pruning.shrinking.weakest import shares_that_go


@dataclass(frozen=True)
class WidthRule:
    """The widths that fit.

    Attributes:
        initializer: Its way to grow streams, and the number of units that belong together.
        round_to: The number of which widths are a multiple.
        exact: Whether the last widths must be the goals, rather than near them.
    """

    initializer: Initializer
    round_to: int = 1
    exact: bool = False


@dataclass(frozen=True)
class Rung:
    """One change of widths on the way to some goals, not applied.

    Attributes:
        request: The units that layers gain, by name; negative ones go.
        parameters: The number of parameters that the model gains, or loses.
        widths: The widths after it, of the layers that the graph follows.
        grown: For each layer that gains units or readers of them, how its tensor lies.
    """

    request: Mapping[str, int]
    parameters: int
    widths: Mapping[str, int]
    grown: Mapping[str, TensorUse | None]


def climb(
    graph: ChannelGraph,
    modules: Mapping[str, nn.Module],
    legs: Sequence[Mapping[str, float]],
    steps: int,
    fit: WidthRule,
) -> list[Rung]:
    """The changes that lead to goals in equal factors, up or down; none of them is applied.

    Args:
        graph: The channel graph as it is.
        modules: The model's modules by path.
        legs: The goals, one after the other: a width by layer.
        steps: The number of changes on the way to each. One in which no width changes has no
            request.
        fit: The widths that fit.

    Raises:
        ValueError: If the last widths do not fit; all of them are named, with those that do.
        FixedWidthError: If a layer cannot grow.
    """
    rungs: list[Rung] = []
    for goals in legs:
        starts = {name: growing_part(graph, graph.nodes[name]) for name in goals}
        down = sum(goal - sum(starts[name]) for name, goal in goals.items()) < 0
        for step in range(1, steps + 1):
            ideal = {
                name: still + growing * ((goals[name] - still) / growing) ** (step / steps)
                for name, (still, growing) in starts.items()
            }
            if step == steps and fit.exact:
                request = _to_the_goal(graph, goals, fit, down=down)
            else:
                request = _near(graph, ideal, fit, _nearest_below if down else _nearest_above)
            growth, rung = (_shrink if down else _grow)(graph, modules, request, fit)
            rungs.append(rung)
            graph = replace(graph, groups=graph.groups.grown(growth))
    return rungs


def growing_part(graph: ChannelGraph, node: LayerNode) -> tuple[int, int]:
    """The number of a layer's units that cannot grow, and of those that can."""
    growing = sum(
        graph.multiplicity(node.outs, group) * graph.groups.width(group)
        for group in graph.growing_groups(node.outs)
    )
    return graph.groups.length(node.outs) - growing, growing


def _to_the_goal(
    graph: ChannelGraph, goals: Mapping[str, float], fit: WidthRule, *, down: bool
) -> dict[str, int]:
    """The units, without a sign, that layers gain or lose to have widths of their own."""
    widths = {name: graph.groups.length(graph.nodes[name].outs) for name in goals}
    missing = {n: abs(round(goal) - widths[n]) for n, goal in goals.items() if goal != widths[n]}
    if down:
        return {n: gone + (widths[n] - gone) % fit.round_to for n, gone in missing.items()}
    return rounded_up(graph, missing, fit.round_to, fit.initializer.way)


def _near(
    graph: ChannelGraph,
    ideal: Mapping[str, float],
    fit: WidthRule,
    nearest: Callable[[ChannelGraph, LayerNode, float, WidthRule], int],
) -> dict[str, int]:
    """The units, without a sign, that take layers as near as possible to some widths."""
    request: dict[str, int] = {}
    changed: set[int] = set()
    for name, wanted in ideal.items():
        node = graph.nodes[name]
        groups = graph.growing_groups(node.outs)
        if changed & {*groups}:
            continue  # it goes along with a layer that came first
        units = nearest(graph, node, wanted, fit)
        if units:
            request[name] = units
            changed |= {*groups}
    return request


def _nearest_above(graph: ChannelGraph, node: LayerNode, wanted: float, fit: WidthRule) -> int:
    """The number of new units that takes a layer nearest to a width; of two the larger."""
    group, step = next(iter(graph.steps(node, fit.initializer.way).items()))
    divides = 1 if group in graph.ways else fit.initializer.divides  # streams have own values
    step = math.lcm(step, graph.multiplicity(node.outs, group) * divides)
    width = graph.groups.length(node.outs)
    round_to = fit.round_to

    def fits(units: int) -> bool:
        return units == 0 or (width + units) % round_to == 0

    below = max(0, math.floor((wanted - width) / step) * step)
    while not fits(below):
        below -= step
    period = math.lcm(step, round_to)
    above = (n for n in range(below + step, below + 2 * period + step, step) if fits(n))
    return min((below, *above), key=lambda n: (abs(width + n - wanted), -n))


def _nearest_below(graph: ChannelGraph, node: LayerNode, wanted: float, fit: WidthRule) -> int:
    """The number of units that go to take a layer nearest to a width; of two the smaller."""
    width = graph.groups.length(node.outs)

    def fits(units: int) -> bool:
        rounded = units == 0 or (width - units) % fit.round_to == 0
        return rounded and units >= 0 and shares_that_go(graph, node, units) is not None

    middle = max(0, math.ceil(width - wanted - 0.5))
    pairs = ((middle - away, middle + away) for away in range(width + 1))
    found = next(fitting for pair in pairs if (fitting := [n for n in pair if fits(n)]))
    return min(found, key=lambda n: (abs(width - n - wanted), n))


def _grow(
    graph: ChannelGraph,
    modules: Mapping[str, nn.Module],
    request: Mapping[str, int],
    fit: WidthRule,
) -> tuple[Mapping[int, int], Rung]:
    """The units that groups gain, and all that comes of it."""
    way = fit.initializer.way
    growth = find_growth(graph, request, way) if request else {}
    edit = make_plan(graph, modules, growth, (), (0, None), request=request, way=way)
    found = {each.name: layer_at(modules, each.name, each.use) for each in edit.changes}
    layers = {name: split_of(module) for name, module in found.items()}
    refuse_unfit(fit.initializer, edit, graph, layers)
    grown = {change.name: change.use for change in edit.changes}
    return growth, Rung(dict(request), edit.parameters, _widths(graph, growth), grown)


def _shrink(
    graph: ChannelGraph,
    modules: Mapping[str, nn.Module],
    request: Mapping[str, int],
    fit: WidthRule,  # noqa: ARG001 - as that of `_grow`
) -> tuple[Mapping[int, int], Rung]:
    """The units that groups lose, and all that comes of it.

    Raises:
        ValueError: If the numbers do not fit.
    """
    growth: dict[int, int] = {}
    for name, count in request.items():
        shares = shares_that_go(graph, graph.nodes[name], count)
        if shares is None:
            raise ValueError(_misfit(graph, name, count))
        growth |= {group: min(-units, growth.get(group, 0)) for group, units in shares.items()}
    widths = _widths(graph, growth)
    for name, count in request.items():
        wanted = graph.groups.length(graph.nodes[name].outs) - count
        if widths[name] != wanted:
            raise ValueError(
                f"{wanted} units of `{name}` contradict those of a layer that is tied to it, which "
                f"leave it {widths[name]}"
            )
    lost = lost_parameters(graph, modules, growth)
    return growth, Rung({n: -count for n, count in request.items()}, -lost, widths, {})


def lost_parameters(
    graph: ChannelGraph, modules: Mapping[str, nn.Module], growth: Mapping[int, int]
) -> int:
    """The parameters that a model loses with some units: as many as it would gain with them.

    Args:
        graph: The channel graph.
        modules: The model's modules by path.
        growth: The units that groups lose, below 0.
    """
    narrow = replace(graph, groups=graph.groups.grown(growth))
    back = {group: -units for group, units in growth.items() if units}
    return make_plan(narrow, modules, back, (), (0, None)).parameters if back else 0


def _misfit(graph: ChannelGraph, name: str, count: int) -> str:
    node = graph.nodes[name]
    width = graph.groups.length(node.outs)
    fits = [n for n in range(width) if shares_that_go(graph, node, n) is not None]
    near = sorted(sorted(fits, key=lambda n: abs(n - count))[:2])
    return (
        f"`{name}` cannot have {width - count} units: the nearest widths are "
        f"{' and '.join(str(width - n) for n in near)}"
    )


def _widths(graph: ChannelGraph, growth: Mapping[int, int]) -> dict[str, int]:
    groups = graph.groups.grown(growth)
    return {node.name: groups.length(node.outs) for node in graph.sized() if node.followed}
