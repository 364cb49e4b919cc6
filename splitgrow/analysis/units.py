"""Where units lie: on the axes of the channel graph, and along the dimensions of tensors.

Whoever gives units values, takes units out or asks what reads them goes by this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from splitgrow.analysis.channel_graph import LayerNode
from splitgrow.analysis.channels.channel_axes import Axis
from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.layers.split_layer import stock
from splitgrow.layers.types import entry_of

_Positions = TypeVar("_Positions", bound=Sequence[object])


class Unit(NamedTuple):
    """A unit, by a name that growth does not change.

    Attributes:
        home: The number of its group; of a channel that the graph takes for constant, the path of
            the layer that makes it.
        nth: Its place in the group, or among the layer's constant channels.
    """

    home: int | str
    nth: int


CONSTANT = Unit("", 0)
"""Any channel that is read and that the graph takes for constant: it does not tell whose it is."""

Place = tuple[Unit, int]
"""A position of an axis: the unit that lies there, and which of the unit's positions it is."""


def places_on(groups: Groups, axis: Axis, maker: str = "") -> tuple[Place, ...]:
    """What lies on each position of an axis.

    Args:
        groups: The store of groups.
        axis: The axis.
        maker: The path of the layer that makes it; empty if it is read.
    """
    found: list[Place] = []
    seen: dict[Unit, int] = {}
    constants = 0
    for run in groups.resolve(axis):
        if run.group is None:
            units = [Unit(maker, constants + n) if maker else CONSTANT for n in range(run.repeat)]
            constants += run.repeat
        else:
            width = groups.width(run.group)
            units = [Unit(run.group, n) for n in range(width) for _ in range(run.repeat)]
        for unit in units:
            found.append((unit, seen.get(unit, 0)))
            seen[unit] = seen.get(unit, 0) + 1
    return tuple(found)


def values_like(
    whole: Tensor,
    places: Mapping[int, Sequence[Place]],
    source: Callable[[Unit], Unit],
    before: Mapping[int, Sequence[Place]] | None = None,
) -> Tensor:
    """A tensor whose units have the values of others, with all that makes and reads them.

    Args:
        whole: The tensor that has the others.
        places: What is to lie along the dimensions of the result.
        source: Of a unit there the one that it is to be like.
        before: What lies along the dimensions of `whole`; by default the same.
    """
    for dim, along in places.items():
        at = {place: n for n, place in enumerate((before or places)[dim])}
        index = [at[source(unit), turn] for unit, turn in along]
        whole = whole.index_select(dim, torch.tensor(index, device=whole.device))
    return whole


def layer_places(
    groups: Groups, node: LayerNode, module: nn.Module
) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
    """What lies on each position of a layer's input and output.

    Args:
        groups: The store of groups.
        node: The layer, as the channel graph knows it.
        module: The layer.
    """
    layer = stock(module)
    # Where each channel is made of itself alone, a constant one is the same on both sides.
    maker = node.name if entry_of(layer).diagonal(layer) else ""
    return places_on(groups, node.ins, maker), places_on(groups, node.outs, node.name)


def along_tensors(
    module: nn.Module, ins: _Positions, outs: _Positions
) -> dict[str, dict[int, _Positions]]:
    """What there is for each position of a layer's axes, along the dimensions of its tensors.

    Args:
        module: The layer, or a grown one, of whose plain form the tensors are.
        ins: Something for each input position, as a sequence or tensor.
        outs: The same for each output position.

    Returns:
        By the tensors' names, for each dimension that runs along either. One of several equal
        sections stands for all of them.
    """
    layer = stock(module)
    sides = {"in": ins, "out": outs}
    return {
        key: {
            dim: sides[along.side][: len(sides[along.side]) // along.sections]  # type: ignore[misc]
            for dim, along in axes.items()
        }
        for key, axes in entry_of(layer).tensors(layer).items()
    }
