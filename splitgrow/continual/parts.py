"""Where units lie: on the axes of the channel graph, and in the tensors of a layer's blocks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.analysis.channel_graph import LayerNode
from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.analysis.units import CONSTANT, Place, Unit, layer_places
from splitgrow.continual.slots import Slot
from splitgrow.layers.composition import Block, Composition
from splitgrow.layers.split_layer import SplitLayer, stock
from splitgrow.layers.types import LayerKind
from splitgrow.utils.spans import Spans


class Numbers:
    """Numbers for units, given in the order in which they are met.

    Args:
        device: Where lists of numbers are to lie.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.known: dict[Unit, int] = {CONSTANT: 0}

    def of(self, places: Iterable[Place]) -> Tensor:
        """The numbers of the units that lie on some positions."""
        known = self.known
        return self.listed([known.setdefault(unit, len(known)) for unit, _ in places])

    def listed(self, numbers: Collection[int]) -> Tensor:
        """Whole numbers as a tensor."""
        return torch.tensor(list(numbers), dtype=torch.long, device=self._device)


@dataclass(frozen=True, eq=False)
class UnitPart:
    """What one block has of one of a layer's tensors.

    Attributes:
        slot: The name of its slot in the body.
        layer: The layer's path.
        key: The tensor's name in the layer.
        block: What the block is for.
        shape: Its shape.
        shared: Whether tasks share it.
        scales: Whether it is what a norm scales units by, whatever the size of what makes them.
        dims: The dimension that runs along units that the layer makes, and the one along units that
            it reads; None where there is none, and where each unit is made of itself alone.
        made: What lies on the first of these.
        read: What lies on the second.
        at: The positions of both in the plain layer's tensor.
        outs: The numbers of the units in `made`.
        ins: The numbers of the units in `read`.
    """

    slot: str
    layer: str
    key: str
    block: Block
    shape: torch.Size
    shared: bool
    scales: bool
    dims: tuple[int, int | None]
    made: tuple[Place, ...]
    read: tuple[Place, ...]
    at: tuple[Tensor, Tensor]
    outs: Tensor
    ins: Tensor

    def rows(self, of_units: Tensor) -> Tensor:
        """What there is for each unit, by number, along the dimension of those that are made."""
        return self._along(of_units[self.outs], self.dims[0])

    def columns(self, of_units: Tensor) -> Tensor:
        """The same along the dimension of those that are read."""
        assert self.dims[1] is not None
        return self._along(of_units[self.ins], self.dims[1])

    def _along(self, values: Tensor, dim: int) -> Tensor:
        return values.reshape([-1 if d == dim else 1 for d in range(len(self.shape))])

    def leading(self, tensor: Tensor) -> Tensor:
        """The tensor with what is made first, and what is read second."""
        dim, other = self.dims
        return tensor.movedim(dim, 0) if other is None else tensor.movedim((dim, other), (0, 1))

    def trailing(self, tensor: Tensor) -> Tensor:
        """The tensor of which `leading` is this."""
        dim, other = self.dims
        return tensor.movedim(0, dim) if other is None else tensor.movedim((0, 1), (dim, other))


def parts_of(
    node: LayerNode,
    module: nn.Module,
    groups: Groups,
    slots: Mapping[int, Slot],
    numbers: Numbers,
) -> Iterator[UnitPart]:
    """The tensors of a layer's blocks that run along units.

    Args:
        node: The layer, as the channel graph knows it.
        module: The layer.
        groups: The store of groups.
        slots: The body's slots, by the ids of their tensors.
        numbers: Gives units their numbers.
    """
    whole, layer = composition_of(module), stock(module)
    kind = whole.kind
    ins, outs = layer_places(groups, node, module)
    for key, axes in kind.tensors(layer).items():
        sides: dict[str, int] = {each.side: dim for dim, each in axes.items()}
        if not sides or not {*axes} <= {0, 1}:
            continue
        makes = "out" if "out" in sides else "in"
        dim, other = sides[makes], sides.get("in") if makes == "out" else None
        along = outs if makes == "out" else ins
        for index, block in enumerate(whole.modules):
            slot = slots.get(id(getattr(block, key, None)))
            if slot is None:
                continue
            at = {d: _positions(spans) for d, spans in whole.places(index, key).items()}
            made = tuple(along[p] for p in at[dim])
            read = tuple(ins[p] for p in at[other]) if other is not None else ()
            dims = (dim, other)
            if other is not None and _flipped(kind, block, key):
                dims = (1 - dim, 1 - other)
            yield UnitPart(
                slot=slot.name,
                layer=node.name,
                key=key,
                block=whole.blocks[index],
                shape=slot.tensor.shape,
                shared=slot.shared,
                scales=key == "weight" and kind.rescales(layer),
                dims=dims,
                made=made,
                read=read,
                at=(numbers.listed(at[dim]), numbers.listed([] if other is None else at[other])),
                outs=numbers.of(made),
                ins=numbers.of(read),
            )


def composition_of(module: nn.Module) -> Composition:
    """A layer's blocks, of which there is one where it has not grown."""
    split = module if isinstance(module, SplitLayer) else SplitLayer(module)
    return split.composition()


def _positions(spans: Spans) -> list[int]:
    return [start + n for start, length in spans for n in range(length)]


def _flipped(kind: LayerKind, block: Any, key: str) -> bool:
    """Whether a block has its tensor the other way round than the plain layer."""
    own, value = getattr(block, key), None if kind.side_by_side else kind.value(block, key)
    if value is None or value is own or own.dim() != 2:
        return False
    return bool(value.data_ptr() == own.data_ptr() and value.stride() == own.stride()[::-1])
