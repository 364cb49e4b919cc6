"""The weakest units: those whose weights, in all layers that make or read them, are smallest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.analysis.channels.channel_axes import Run
from splitgrow.analysis.units import UnitNumbers
from splitgrow.errors import FixedWidthError
from splitgrow.growth.planning import checked_rounding
from splitgrow.pruning.criteria.magnitudes import powers
from splitgrow.pruning.criteria.unit_parameters import ParametersOfUnits


def weakest_channels(
    graph: ChannelGraph,
    node: LayerNode,
    count: int,
    scores: Mapping[int, Tensor],
    round_to: int = 1,
) -> list[int]:
    """The channels of a layer's weakest units.

    Args:
        graph: The channel graph.
        node: The layer.
        count: The number of channels.
        scores: By group a number for each unit; those with the lowest go.
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
    shares = shares_that_go(graph, node, count)
    if shares is None:
        raise ValueError(
            f"{count} of the {width} channels of `{node.name}` cannot go: it shrinks in steps of "
            f"{_step(graph, node)}, and a unit stays"
        )
    numbers = UnitNumbers(graph.groups)
    on_axis = numbers.on(node.outs)
    weak = [
        numbers.on((Run(group, 1),))[scores[group].argsort(stable=True)[:units]]
        for group, units in shares.items()
    ]
    found: list[int] = torch.isin(on_axis, torch.cat(weak)).nonzero().flatten().tolist()
    return found


def _step(graph: ChannelGraph, node: LayerNode) -> int:
    """The smallest number of channels that a layer can lose."""
    return min(
        graph.multiplicity(node.outs, group) * graph.multiples.get(group, (1, ""))[0]
        for group in graph.growing_groups(node.outs)
    )


def shares_that_go(graph: ChannelGraph, node: LayerNode, count: int) -> dict[int, int] | None:
    """The units that each group loses so that a layer loses some channels; None if nothing fits.

    The group at the end of the axis comes first, as in growth, and each keeps a unit.

    Args:
        graph: The channel graph.
        node: The layer.
        count: The number of channels.
    """
    shares: dict[int, int] = {}
    for group in graph.growing_groups(node.outs):
        repeat, step = graph.multiplicity(node.outs, group), graph.multiples.get(group, (1, ""))[0]
        most = (graph.groups.width(group) - 1) // step * step
        shares[group] = min(count // (repeat * step) * step, most)
        count -= shares[group] * repeat
    return None if count else shares


def squared_norms(
    graph: ChannelGraph, modules: Mapping[str, nn.Module], groups: Iterable[int]
) -> dict[int, Tensor]:
    """The sum of squares of all weights that make or read each unit, by group.

    Args:
        graph: The channel graph.
        modules: The model's modules by path.
        groups: The groups.
    """
    units = ParametersOfUnits(graph, modules, groups)
    return units.by_group(powers(units, "makes", "reads", p=2))
