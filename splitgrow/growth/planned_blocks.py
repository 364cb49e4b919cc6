"""The blocks that an edit adds to one layer: their kinds, their sizes, their making."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, NamedTuple

from torch import nn

from splitgrow.layers.types import LayerType


class BlockSizes(NamedTuple):
    """The numbers of channels of a block.

    Attributes:
        ins: The inputs that it reads.
        outs: The outputs that it makes, or adds to.
        back: The layer's own outputs that it reads, if the layer does that.
    """

    ins: int
    outs: int
    back: int


def planned_blocks(
    entry: LayerType,
    module: nn.Module,
    before: tuple[int, int],
    gain: tuple[int, int],
    *,
    helper_last: bool = False,
) -> dict[str, BlockSizes]:
    """The blocks that a layer gets, with their numbers of channels, in order.

    A helper comes first: it reads the new inputs for the outputs that exist. Then a new block reads
    all inputs for the new outputs, so that the two fill the grown weight's two strips. A layer that
    reads its own outputs reads these as it does inputs.

    Args:
        entry: The entry for the layer's type.
        module: The original layer.
        before: The numbers of inputs and outputs.
        gain: The numbers of those that are new.
        helper_last: Whether the new block reads the old inputs only, and then a helper reads the
            new ones for all outputs. So does a layer that shares its weight, turned, with another.
    """
    if entry.diagonal(module):
        return {"new": BlockSizes(*gain, 0)}
    if helper_last and all(gain):
        new = BlockSizes(before[0], gain[1], 0)
        return {"new": new, "helper": BlockSizes(gain[0], before[1] + gain[1], 0)}
    blocks = {}
    back = gain[1] if entry.reads_back(module) else 0
    if gain[0] or back:
        blocks["helper"] = BlockSizes(gain[0], before[1], back)
    if gain[1]:
        blocks["new"] = BlockSizes(before[0] + gain[0], gain[1], back and before[1] + back)
    return blocks


def build_block(
    layer: LayerType, original: nn.Module, kind: str, sizes: BlockSizes, **options: Any
) -> nn.Module:
    """A block for a layer of a type, modelled on the original layer."""
    build = layer.merging.helper if kind == "helper" else layer.merging.new
    if layer.reads_back(original):
        options["back"] = sizes.back
    return build(original, (sizes.ins, sizes.outs), **options)


def count_new_parameters(
    layer: LayerType,
    original: nn.Module,
    blocks: Mapping[str, BlockSizes],
    counted: Container[str],
) -> int:
    """The number of parameters of new blocks, less those of tensors that are counted elsewhere."""
    built = (build_block(layer, original, *block, device="meta") for block in blocks.items())
    named = (item for block in built for item in block.named_parameters())
    return sum(parameter.numel() for name, parameter in named if name not in counted)
