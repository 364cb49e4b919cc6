"""The weakest units: those whose weights, in all layers that make or read them, are smallest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.analysis.units import places_on
from splitgrow.errors import FixedWidthError
from splitgrow.growth.planning import checked_rounding
from splitgrow.pruning.criteria.magnitudes import powers
from splitgrow.pruning.criteria.unit_parameters import ParametersOfUnits


def weakest_channels(
    graph: ChannelGraph,
    modules: Mapping[str, nn.Module],
    node: LayerNode,
    count: int,
    round_to: int = 1,
) -> list[int]:
    """The channels of a layer's weakest units.

    Args:
        graph: The channel graph.
        modules: The model's modules by path.
        node: The layer.
        count: The number of channels.
        round_to: The number of which the width that stays is a multiple; more channels go for that.

    Raises:
        TypeError: If a number is no int.
        ValueError: If so many cannot go.
        FixedWidthError: If the layer's width is fixed.
    """
    width, groups = graph.groups.length(node.outs), graph.growing_groups(node.outs)
    if isinstance(count, bool) or not isinstance(count, int):
        raise TypeError(f"the number of channels of `{node.name}` that go is an int, got {count!r}")
    if count < 1:
        raise ValueError(f"the number (={count}) of channels of `{node.name}` must be at least 1")
    if not groups:
        raise FixedWidthError(f"`{node.name}` cannot shrink: {graph.reason(node)}")
    count += (width - count) % checked_rounding(round_to)
    lying: dict[int, dict[int, list[int]]] = {group: {} for group in groups}
    for position, (unit, _) in enumerate(places_on(graph.groups, node.outs)):
        if unit.home in lying:
            lying[unit.home].setdefault(unit.nth, []).append(position)
    scores = _squared_norms(graph, modules, groups)
    found: list[int] = []
    for group, units in lying.items():  # the one at the end of the axis first, as in growth
        step = len(next(iter(units.values()))) * graph.multiples.get(group, (1, ""))[0]
        many = min((count - len(found)) // step, (len(units) - 1) * len(units[0]) // step) * step
        weak = sorted(units, key=lambda nth: float(scores[group][nth]))
        for nth in weak[: many // len(units[0])]:
            found += units[nth]
    if len(found) != count:
        raise ValueError(
            f"{count} of the {width} channels of `{node.name}` cannot go: it shrinks in steps of "
            f"{graph.step(node)}, and a unit stays"
        )
    return sorted(found)


def _squared_norms(
    graph: ChannelGraph, modules: Mapping[str, nn.Module], groups: Iterable[int]
) -> dict[int, Tensor]:
    """The sum of squares of all weights that make or read each unit of some groups."""
    units = ParametersOfUnits(graph, modules, groups)
    return units.by_group(powers(units, "makes", "reads", p=2))
