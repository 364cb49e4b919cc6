"""Where units lie: on the axes of the channel graph, and along the dimensions of tensors.

The code that gives units values, removes units or asks for their readers uses this.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from splitgrow.analysis.channel_graph import LayerNode
from splitgrow.analysis.channels.channel_axes import Axis
from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.layers.split_layer import stock
from splitgrow.layers.types import Along, known_layer_type


class Unit(NamedTuple):
    """A unit, by a name that growth does not change.

    Attributes:
        home: The number of its group; for a channel that the graph takes for constant, the path of
            the layer that makes it.
        nth: Its place in the group, or among the layer's constant channels.
    """

    home: int | str
    nth: int


CONSTANT = Unit("", 0)
"""Any channel that is read and that the graph takes for constant: its maker is not known."""

Place = tuple[Unit, int]
"""A position of an axis: the unit that lies there, and its index among the unit's positions."""

_Positions = TypeVar("_Positions", tuple[Place, ...], Tensor)


class UnitNumbers:
    """Numbers for units, by which tensors refer to them; 0 is `CONSTANT`.

    The units of a group get consecutive numbers, once one of them is met.

    Args:
        groups: The store of groups.
        device: Where tensors are to lie.
    """

    def __init__(self, groups: Groups, device: torch.device | str = "cpu") -> None:
        self._groups, self._device = groups, device
        self._homes: dict[int | str, tuple[int, int]] = {CONSTANT.home: (0, 1)}
        self._count = 1

    def on(self, axis: Axis, maker: str = "") -> Tensor:
        """The numbers of the units on each position of an axis.

        Args:
            axis: The axis.
            maker: The path of the layer that makes it; empty if it is read.
        """
        runs = self._groups.resolve(axis)
        own = sum(run.repeat for run in runs if run.group is None) if maker else 0
        found = [torch.zeros(0, dtype=torch.long)]
        taken = 0
        for run in runs:
            if run.group is not None:
                numbers = self._of_home(run.group, self._groups.width(run.group))
                found.append(numbers.repeat_interleave(run.repeat))
            elif maker:
                found.append(self._of_home(maker, own)[taken : taken + run.repeat])
                taken += run.repeat
            else:
                found.append(torch.zeros(run.repeat, dtype=torch.long))
        return torch.cat(found).to(self._device)

    def _of_home(self, home: int | str, count: int) -> Tensor:
        start, known = self._homes.setdefault(home, (self._count, count))
        assert known == count, f"{home} has {known} units and {count}"
        self._count = max(self._count, start + count)
        return torch.arange(start, start + count)

    @property
    def order(self) -> tuple[Unit, ...]:
        """The units that were met; a unit's position here is its number."""
        return tuple(
            Unit(home, n) for home, (_, count) in self._homes.items() for n in range(count)
        )

    def by_home(self, numbers: Tensor) -> dict[int | str, list[int]]:
        """Units by their group, or by the layer that makes them, as their places there, in order.

        Args:
            numbers: The numbers of the units, each once.
        """
        found = {}
        for home, (start, count) in self._homes.items():
            own = numbers[(numbers >= start) & (numbers < start + count)]
            if len(own):
                found[home] = sorted((own - start).tolist())
        return found

    def marks(self, chosen: Iterable[Unit]) -> Tensor:
        """Whether each unit that was met is among the chosen ones."""
        marks = torch.zeros(self._count, dtype=torch.bool)
        homes = ((self._homes[unit.home], unit.nth) for unit in chosen if unit.home in self._homes)
        marks[[start + nth for (start, count), nth in homes if nth < count]] = True
        return marks.to(self._device)

    def chosen(self, marks: Tensor) -> frozenset[Unit]:
        """The units that are marked."""
        order = self.order
        return frozenset(order[n] for n in marks.nonzero().flatten().tolist())


def places_on(groups: Groups, axis: Axis, maker: str = "") -> tuple[Place, ...]:
    """The unit on each position of an axis.

    Args:
        groups: The store of groups.
        axis: The axis.
        maker: The path of the layer that makes it; empty if it is read.
    """
    numbers = UnitNumbers(groups)
    on_axis, units = numbers.on(axis, maker).tolist(), numbers.order
    turns = [0] * len(units)
    found: list[Place] = []
    for number in on_axis:
        found.append((units[number], turns[number]))
        turns[number] += 1
    return tuple(found)


def values_like(
    whole: Tensor,
    places: Mapping[int, Sequence[Place]],
    source: Callable[[Unit], Unit],
    before: Mapping[int, Sequence[Place]] | None = None,
) -> Tensor:
    """A tensor whose units have the values of others, along all dimensions on which units lie.

    Args:
        whole: The tensor that has the others.
        places: The units along the dimensions of the result.
        source: Gives for a unit there the one that it is to be like.
        before: The units along the dimensions of `whole`; by default the same.
    """
    for dim, along in places.items():
        at = {place: n for n, place in enumerate((before or places)[dim])}
        index = [at[source(unit), turn] for unit, turn in along]
        whole = whole.index_select(dim, torch.tensor(index, device=whole.device))
    return whole


def maker_of_inputs(node: LayerNode, module: nn.Module) -> str:
    """The path of a layer whose channels are each made of itself alone; empty for others.

    A constant channel is the same on both sides of it.
    """
    layer = stock(module)
    return node.name if known_layer_type(layer).diagonal(layer) else ""


def layer_places(
    groups: Groups, node: LayerNode, module: nn.Module
) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
    """The units on each position of a layer's input and output.

    Args:
        groups: The store of groups.
        node: The layer, as the channel graph knows it.
        module: The layer.
    """
    ins = places_on(groups, node.ins, maker_of_inputs(node, module))
    return ins, places_on(groups, node.outs, node.name)


def _along(side: _Positions, along: Along) -> _Positions:
    section = side[: len(side) // along.sections]
    if isinstance(section, Tensor):
        return section.repeat(along.copies)
    turns = Counter(unit for unit, _ in section)
    return tuple(
        (unit, turn + copy * turns[unit]) for copy in range(along.copies) for unit, turn in section
    )


def along_tensors(
    module: nn.Module, ins: _Positions, outs: _Positions
) -> dict[str, dict[int, _Positions]]:
    """Values for the positions of a layer's axes, along the dimensions of its tensors.

    Args:
        module: The layer; of a grown one the tensors are those of its plain form.
        ins: The values for the input positions: places, or a tensor.
        outs: The same for the output positions.

    Returns:
        By the tensors' names, for each dimension along an axis. One of several equal sections
        stands for all of them; the copies of an axis follow each other.
    """
    layer = stock(module)
    sides = {"in": ins, "out": outs}
    return {
        key: {dim: _along(sides[along.side], along) for dim, along in axes.items()}
        for key, axes in known_layer_type(layer).tensors(layer).items()
    }
