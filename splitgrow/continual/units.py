"""The units of a body: the units that each of them reads, and numbers for each of them.

A group of the channel graph gains one unit at a time: a channel with all the layers that make it,
such as the ends of a residual path, on all the positions where it lies, such as the features that
flattening makes of it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.analysis.units import (
    Place,
    Unit,
    UnitNumbers,
    along_tensors,
    layer_places,
    places_on,
)
from splitgrow.continual.body import Body
from splitgrow.continual.parts import UnitPart, parts_of
from splitgrow.growth.history_lookup import history_of
from splitgrow.layers.tensor_holder import split_of
from splitgrow.layers.types import Join, Joined
from splitgrow.pruning.dead_units.weight_connections import (
    Reader,
    readers_of,
    reads,
    sections_of,
    spread_,
)


class Units:
    """The units of a body, with its widths at the time this is made.

    Attributes:
        graph: The body's channel graph, of that time.
        parts: The tensors of all blocks that run along units.
        features: The place on each of the features that the body returns.
        order: The units; a unit's number is its position here.

    Args:
        body: The body. It is not changed.
    """

    def __init__(self, body: Body) -> None:
        self._body = body
        history = history_of(body.model)
        self.graph: ChannelGraph = history.graph
        self._modules = history.modules
        self._numbers = UnitNumbers(self.graph.groups, body.device)
        slots = {id(slot.tensor): slot for slot in body.slots.values()}
        found: dict[str, UnitPart] = {}
        for node in self.graph.nodes.values():
            if node.followed and node.use is None:
                module = self._modules[node.name]
                for part in parts_of(node, module, slots, self._numbers):
                    found.setdefault(part.slot, part)
        self.parts = tuple(found.values())
        (axes,) = self.graph.outputs
        self.features = places_on(self.graph.groups, axes[1])
        self._features = self._numbers.on(axes[1])
        self.order = self._numbers.order

    # -- units ------------------------------------------------------------------------------------

    def marks(self, chosen: Iterable[Unit]) -> Tensor:
        """For each unit whether it is among some, by number."""
        return self._numbers.marks(chosen)

    def chosen(self, marks: Tensor) -> frozenset[Unit]:
        """The units that are marked."""
        return self._numbers.chosen(marks)

    @cached_property
    def growing(self) -> tuple[int, ...]:
        """The groups that can grow by any number of units, in order of execution."""
        graph = self.graph
        groups = (g for node in graph.sized() for g in graph.growing_groups(node.outs)[::-1])
        return tuple(
            g for g in dict.fromkeys(groups) if "duplicate" not in graph.ways.get(g, ())[:1]
        )

    def step(self, group: int) -> int:
        """The number of channels in one unit of a group, in the first layer that makes it."""
        nodes = self.graph.sized()
        counts = (self.graph.multiplicity(node.outs, group) for node in nodes)
        return next(count for count in counts if count)

    def width(self, group: int | str) -> int:
        """The number of units of a group."""
        assert isinstance(group, int)
        return self.graph.groups.width(group)

    def since(self, earlier: Units) -> frozenset[Unit]:
        """The units that did not exist yet in an earlier state of the same body."""
        return frozenset(
            unit
            for unit in self.order
            if isinstance(unit.home, int) and unit.nth >= earlier.width(unit.home)
        )

    def counts(self, chosen: Collection[Unit]) -> dict[str, int]:
        """The number of channels of each layer that belong to some units."""
        marks, nodes = self.marks(chosen), [n for n in self.graph.sized() if n.followed]
        return {n.name: int(marks[self._numbers.on(n.outs, n.name)].sum()) for n in nodes}

    @cached_property
    def makers(self) -> frozenset[str]:
        """The layers that make units from others: no norms, and nothing depthwise."""
        return frozenset(part.layer for part in self.parts if part.dims[1] is not None)

    def given(self, values: Mapping[str, Any]) -> Iterator[UnitPart]:
        """The parts of the shared tensors among some values, by slots' names."""
        return (part for part in self.parts if part.shared and part.slot in values)

    def born_in(self, edit: int) -> list[UnitPart]:
        """The parts of the tensors that came with an edit."""
        return [part for part in self.parts if part.block.edit == edit]

    # -- readers ----------------------------------------------------------------------------------

    @cached_property
    def unread(self) -> Tensor:
        """The units that layers make and that only ops read, such as those of queries and keys.

        The graph does not know their readers.
        """
        makers = [part for part in self.parts if part.layer in self.makers]
        made = self._on(part.outs for part in makers)
        read = {unit.home for unit in self._on([self._features, *(p.ins for p in makers)])}
        return self.marks(u for u in made if isinstance(u.home, int) and u.home not in read)

    def _on(self, numbers: Iterable[Tensor]) -> set[Unit]:
        """The units of some numbers."""
        return {self.order[n] for own in numbers for n in {*own.tolist()}}

    def needed(self, values: Mapping[str, Tensor], features: Tensor) -> frozenset[Unit]:
        """The units that some features depend on, through nonzero weights.

        A unit depends on the units that its layers read, if any weight between the two is nonzero,
        at any position of a kernel. Units that the graph does not follow count as needed: those
        that only ops read, and all constant channels as soon as one is read.

        Args:
            values: The shared tensors, by slots' names.
            features: The features, as bools.
        """
        marked = self.unread.clone()
        marked[self._features[features]] = True
        constants = self.marks({unit for unit in self.order if isinstance(unit.home, str)})
        makers = [name for name in self.graph.nodes if name in self.makers]
        readers = [reader for name in makers for reader in self._readers(name, values)]
        spread_(marked, readers)
        while bool((marked[0] & constants & ~marked).any()):
            marked |= constants
            spread_(marked, readers)
        return self.chosen(marked)

    def _readers(self, layer: str, values: Mapping[str, Tensor]) -> list[Reader]:
        """A layer that makes units from others, with its weights among some tensors."""
        composition, node = split_of(self._modules[layer]).composition(), self.graph.nodes[layer]
        found = [
            section
            for key, axes in composition.layer_type.tensors(composition.original).items()
            if reads(axes) and (whole := self.whole(layer, key, values)) is not None
            for section in sections_of(whole, axes, composition.sizes)
        ]
        ins, outs = self._numbers.on(node.ins), self._numbers.on(node.outs, layer)
        return readers_of(found, ins, outs)

    def between(self, chosen: Collection[Unit]) -> dict[str, Tensor]:
        """The positions of weights between some units in each shared tensor, by slots' names."""
        marks, found = self.marks(chosen), {}
        for part in self.parts:
            if part.shared:
                mask = part.rows(marks)
                mask = mask & part.columns(marks) if part.dims[1] is not None else mask
                found[part.slot] = mask.expand(part.shape).clone()
        return found

    def on_features(self, of_units: Tensor) -> Tensor:
        """Values per unit, taken by number, for the units of the features."""
        return of_units[self._features]

    def norms(self, values: Mapping[str, Tensor]) -> Tensor:
        """The 2-norm of each unit's incoming weights, in double precision, by number.

        These are its rows in all layers that make it, in the given shared tensors.
        """
        return self._norms(self.given(values), values)

    @cached_property
    def scaled(self) -> Tensor:
        """The units that norms bring to a size of their own, for weights of any size."""
        return self.marks(self._on(part.outs for part in self.scales))

    @cached_property
    def scales(self) -> tuple[UnitPart, ...]:
        """The tensors' parts by which norms scale units."""
        return tuple(part for part in self.parts if part.scales)

    def sizes(self, values: Mapping[str, Tensor]) -> Tensor:
        """The size of each unit, by number: a 2-norm in double precision.

        It is that of the scales of the norms that a unit goes through; without norms, that of its
        incoming weights.

        Args:
            values: Tensors by slots' names; others are left out.
        """
        scales = self._norms((part for part in self.scales if part.slot in values), values)
        return torch.where(self.scaled, scales, self.norms(values))

    def _norms(self, parts: Iterable[UnitPart], values: Mapping[str, Tensor]) -> Tensor:
        total = torch.zeros(len(self.order), dtype=torch.float64, device=self._features.device)
        for part in parts:
            value = part.leading(values[part.slot].detach().double())
            total.index_add_(0, part.outs, value.square().reshape(len(value), -1).sum(1))
        return total.sqrt()

    @torch.no_grad()
    def resize_(self, values: Mapping[str, Tensor], factors: Tensor) -> None:
        """Multiplies `sizes` of units.

        Args:
            values: The tensors that are changed, by slots' names.
            factors: The factors, by number.
        """
        apart = torch.where(self.scaled, torch.ones_like(factors), factors)
        for part in self.parts:
            if part.slot in values and (part.shared or part.scales):
                value = values[part.slot]
                value.mul_(part.rows(factors if part.scales else apart).to(value.dtype))

    # -- by layer ---------------------------------------------------------------------------------

    def places(self, layer: str) -> dict[str, dict[int, tuple[Place, ...]]]:
        """The places along the dimensions of a layer's tensors, by the tensors' names."""
        module = self._modules[layer]
        ins, outs = layer_places(self.graph.groups, self.graph.nodes[layer], module)
        return along_tensors(module, ins, outs)

    def length(self, layer: str) -> int:
        """The number of channels that a layer makes."""
        return self.graph.groups.length(self.graph.nodes[layer].outs)

    def carried(self, layer: str, key: str, value: Tensor, length: int) -> Tensor:
        """A tensor of a norm over all channels for another number of these, some of them silent.

        That of any other layer stays as it is.
        """
        merging = split_of(self._modules[layer]).composition().layer_type.merging
        joined = Joined(Join.DILUTES, self.length(layer), length)
        return merging.carried_over(key, value, merging.carry([joined]))

    def whole(self, layer: str, key: str, values: Mapping[str, Tensor]) -> Tensor | None:
        """A tensor of the plain layer, assembled from tensors by slots' names."""
        with self._body.reading(values):
            return split_of(self._modules[layer]).composition().value(key)
