"""From goals to growths: the widths on the way, rounded to those that fit. Changes nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.growth.edits import Edit
from splitgrow.growth.initializers import Initializer, refuse_unfit
from splitgrow.growth.planning import find_growth, make_plan, rounded_up
from splitgrow.layers.tensor_holder import layer_at, split_of


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


def climb(
    graph: ChannelGraph,
    modules: Mapping[str, nn.Module],
    goals: Mapping[str, float],
    steps: int,
    fit: WidthRule,
) -> list[Edit]:
    """The growths that lead to goals in equal factors; none of them is applied.

    Args:
        graph: The channel graph as it is.
        modules: The model's modules by path.
        goals: The last width by layer.
        steps: The number of growths. A growth in which no layer gains a unit has no request.
        fit: The widths that fit.

    Raises:
        ValueError: If the last widths do not fit; all of them are named, with those that do.
        FixedWidthError: If a layer cannot grow.
    """
    starts = {name: growing_part(graph, graph.nodes[name]) for name in goals}
    edits: list[Edit] = []
    for step in range(1, steps + 1):
        ideal = {
            name: still + growing * ((goals[name] - still) / growing) ** (step / steps)
            for name, (still, growing) in starts.items()
        }
        if step == steps and fit.exact:
            request = _to_the_goal(graph, goals, fit)
        else:
            request = _near(graph, ideal, fit)
        edit = _edit(graph, modules, request, fit)
        edits.append(edit)
        graph = replace(graph, groups=graph.groups.grown(edit.growth))
    return edits


def growing_part(graph: ChannelGraph, node: LayerNode) -> tuple[int, int]:
    """The number of a layer's units that cannot grow, and of those that can."""
    growing = sum(
        graph.multiplicity(node.outs, group) * graph.groups.width(group)
        for group in graph.growing_groups(node.outs)
    )
    return graph.groups.length(node.outs) - growing, growing


def _to_the_goal(graph: ChannelGraph, goals: Mapping[str, float], fit: WidthRule) -> dict[str, int]:
    widths = {name: graph.groups.length(graph.nodes[name].outs) for name in goals}
    missing = {name: round(goal) - widths[name] for name, goal in goals.items()}
    request = {name: units for name, units in missing.items() if units > 0}
    return rounded_up(graph, request, fit.round_to, fit.initializer.way)


def _near(graph: ChannelGraph, ideal: Mapping[str, float], fit: WidthRule) -> dict[str, int]:
    """The units that take layers as near as possible to some widths."""
    request: dict[str, int] = {}
    grown: set[int] = set()
    for name, wanted in ideal.items():
        node = graph.nodes[name]
        groups = graph.growing_groups(node.outs)
        if grown & {*groups}:
            continue  # it grows along with a layer that came first
        units = _nearest(graph, node, wanted, fit)
        if units:
            request[name] = units
            grown |= {*groups}
    return request


def _nearest(graph: ChannelGraph, node: LayerNode, wanted: float, fit: WidthRule) -> int:
    """The number of units that takes a layer nearest to a width; of two the larger."""
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


def _edit(
    graph: ChannelGraph,
    modules: Mapping[str, nn.Module],
    request: Mapping[str, int],
    fit: WidthRule,
) -> Edit:
    way = fit.initializer.way
    growth = find_growth(graph, request, way) if request else {}
    edit = make_plan(graph, modules, growth, (), (0, None), request=request, way=way)
    found = {each.name: layer_at(modules, each.name, each.use) for each in edit.changes}
    layers = {name: split_of(module) for name, module in found.items()}
    refuse_unfit(fit.initializer, edit, graph, layers)
    return edit
