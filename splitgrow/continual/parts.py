"""Where units lie: on the axes of the channel graph, and in the tensors of a layer's blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.analysis.channel_graph import LayerNode
from splitgrow.analysis.units import UnitNumbers, along_tensors, maker_of_inputs
from splitgrow.continual.slots import Slot
from splitgrow.errors import UnsupportedModelError
from splitgrow.layers.block_roles import Block
from splitgrow.layers.split_layer import stock
from splitgrow.layers.tensor_holder import split_of
from splitgrow.layers.types import LayerType
from splitgrow.utils.spans import laid_along, take


@dataclass(frozen=True, eq=False)
class UnitPart:
    """The part of one of a layer's tensors that lies in one block.

    Attributes:
        slot: The name of its slot in the body.
        layer: The layer's path.
        key: The tensor's name in the layer.
        block: The role of the block.
        shape: Its shape.
        shared: Whether tasks share it.
        scales: Whether a norm scales units by it, for any size of the weights that make them.
        dims: The dimension that runs along units that the layer makes, and the one along units that
            it reads; None where there is none, and where each unit is made of itself alone.
        outs: The numbers of the units on the first of these.
        ins: The numbers of those on the second; of none where there is none.
    """

    slot: str
    layer: str
    key: str
    block: Block
    shape: torch.Size
    shared: bool
    scales: bool
    dims: tuple[int, int | None]
    outs: Tensor
    ins: Tensor

    def rows(self, of_units: Tensor) -> Tensor:
        """Values per unit, in order of the numbers, along the dimension of units that are made."""
        return laid_along(of_units[self.outs], self.dims[0], len(self.shape))

    def columns(self, of_units: Tensor) -> Tensor:
        """The same along the dimension of those that are read."""
        assert self.dims[1] is not None
        return laid_along(of_units[self.ins], self.dims[1], len(self.shape))

    def leading(self, tensor: Tensor) -> Tensor:
        """The tensor with the dimension of made units first, and that of read units second."""
        dim, other = self.dims
        return tensor.movedim(dim, 0) if other is None else tensor.movedim((dim, other), (0, 1))


def parts_of(
    node: LayerNode,
    module: nn.Module,
    slots: Mapping[int, Slot],
    numbers: UnitNumbers,
) -> Iterator[UnitPart]:
    """The tensors of a layer's blocks that run along units.

    Args:
        node: The layer, as the channel graph knows it.
        module: The layer.
        slots: The body's slots, by the ids of their tensors.
        numbers: The number of each unit.

    Raises:
        UnsupportedModelError: If a tensor reads units for no unit in particular.
    """
    whole, layer = split_of(module).composition(), stock(module)
    entry = whole.layer_type
    if not entry.tensors(layer):
        return
    ins = numbers.on(node.ins, maker_of_inputs(node, module))
    along = along_tensors(module, ins, numbers.on(node.outs, node.name))
    for key, axes in entry.tensors(layer).items():
        found = {each.reads: dim for dim, each in axes.items()}
        if not found or not {*axes} <= {0, 1}:
            continue
        if {*found} == {True} and not entry.diagonal(layer):
            raise UnsupportedModelError(
                f"`{node.name}` reads units by `{key}` for all of its own at once, as an LSTM with "
                f"a projection does; continual learning by units takes layers without that only"
            )
        dim = found.get(False, found.get(True, 0))
        other = found.get(True) if False in found else None
        for index, block in enumerate(whole.modules):
            slot = slots.get(id(getattr(block, key, None)))
            if slot is None:
                continue
            own = {
                d: take(along[key][d], 0, spans) for d, spans in whole.places(index, key).items()
            }
            dims = (dim, other)
            if other is not None and _flipped(entry, block, key):
                dims = (1 - dim, 1 - other)
            yield UnitPart(
                slot=slot.name,
                layer=node.name,
                key=key,
                block=whole.blocks[index],
                shape=slot.tensor.shape,
                shared=slot.shared,
                scales=key == "weight" and entry.norm(layer) is not None,
                dims=dims,
                outs=own[dim],
                ins=ins[:0] if other is None else own[other],
            )


def _flipped(entry: LayerType, block: Any, key: str) -> bool:
    """Whether a block has its tensor the other way round than the plain layer."""
    own, value = getattr(block, key), entry.merging.value(block, key)
    if value is None or value is own or own.dim() != 2:
        return False
    return bool(value.data_ptr() == own.data_ptr() and value.stride() == own.stride()[::-1])
