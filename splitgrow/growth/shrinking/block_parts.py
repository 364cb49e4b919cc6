"""The parts of a layer's blocks that stay when channels go: which positions, which sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.analysis.units import along_tensors
from splitgrow.growth.planned_blocks import BlockSizes, build_block
from splitgrow.layers.block_roles import Block
from splitgrow.layers.channel_layout import Layout
from splitgrow.layers.composition import Composition
from splitgrow.layers.module_state import is_plain
from splitgrow.layers.types import layer_type_of
from splitgrow.layers.weight_views import is_dense, memory_format_of
from splitgrow.utils.spans import Spans

Kept = Mapping[int, Tensor]
"""By dimension the positions of a tensor that stay."""
Layouts = tuple[Layout, Layout]
"""Where a layer's inputs and outputs came from."""
_COUNTS = (int, tuple, list)
"""The types of attributes that change with a number of channels."""


def part_at(tensor: Tensor, kept: Kept) -> Tensor:
    """The part of a tensor at some positions, with storage of its own."""
    part = tensor.detach()
    for dim, positions in kept.items():
        part = part.index_select(dim, positions.to(tensor.device))
    if not tensor.is_contiguous() and is_dense(tensor):
        return part.contiguous(memory_format=memory_format_of(tensor))
    return part if part.data_ptr() != tensor.data_ptr() or part.is_meta else part.clone()


def marks_at(spans: Spans, length: int) -> Tensor:
    """Positions as bools."""
    marks = torch.zeros(length, dtype=torch.bool)
    for start, count in spans:
        marks[start : start + count] = True
    return marks


def block_sizes(composition: Composition, role: Block, layouts: Layouts) -> BlockSizes:
    """The numbers of channels that a block has in layouts."""
    ins, outs = layouts
    entry, original = composition.layer_type, composition.original
    made = _count(outs, role.makes)
    if entry.diagonal(original):
        return BlockSizes(_count(ins, role.makes), made, 0)
    back = 0
    if entry.reads_back(original) and role.kind != "original":
        back = _count(outs, role.reads)
    return BlockSizes(_count(ins, role.reads), made, back)


def _count(layout: Layout, chosen: Callable[[int], bool]) -> int:
    return sum(length for _, length in layout.spans(chosen))


def marks_of_block(
    composition: Composition, index: int, stays: tuple[Tensor, Tensor]
) -> dict[str, dict[int, Tensor]]:
    """The marks of the positions that stay along the dimensions of a block's tensors, by name.

    Args:
        composition: The layer.
        index: The place of the block.
        stays: The marks of the layer's input and output channels.
    """
    module, role = composition.modules[index], composition.blocks[index]
    entry, original = composition.layer_type, composition.original
    if entry.reads_back(original):
        whole = along_tensors(original, *stays)
        return {
            key: {
                dim: _at(whole[key][dim], spans)
                for dim, spans in composition.places(index, key).items()
            }
            for key in whole
        }
    reads = role.makes if entry.diagonal(original) else role.reads
    ins = _at(stays[0], composition.ins.spans(reads))
    return along_tensors(
        home_of(composition, module), ins, _at(stays[1], composition.outs.spans(role.makes))
    )


def home_of(composition: Composition, block: nn.Module) -> nn.Module:
    """The layer whose entry says how a block's tensors lie along its channels.

    That is the original, unless the plain layer has the block's tensors in another way.
    """
    original = composition.original
    if type(block) is type(original):
        return original
    for name in composition.layer_type.tensors(original):
        own = getattr(block, name, None)
        if own is not None and composition.merging.value(block, name) is not own:
            return block
    return original


def _at(marks: Tensor, spans: Spans) -> Tensor:
    parts = [marks[start : start + count] for start, count in spans]
    return torch.cat([marks[:0], *parts])


def changed_attributes(before: nn.Module, after: nn.Module) -> dict[str, Any]:
    """The attributes in which a layer with fewer channels differs."""
    return {
        key: value
        for key, value in vars(after).items()
        if is_plain(value) and type(value) in _COUNTS and vars(before).get(key, value) != value
    }


def built_like(composition: Composition, index: int, sizes: BlockSizes) -> nn.Module:
    """A block like one of a layer, of other sizes and without values."""
    entry, role = composition.layer_type, composition.blocks[index]
    if role.kind == "original":
        return entry.build(composition.original, (sizes.ins, sizes.outs), device="meta")
    return build_block(entry, composition.original, role.kind, sizes, device="meta")


def changes_kind(composition: Composition, layouts: Layouts) -> bool:
    """Whether a layer, or its original block, would be one of another kind with these channels.

    A grouped convolution with one input for each group is a depthwise one, for example.
    """
    first = block_sizes(composition, composition.blocks[0], layouts)
    original, entry = composition.original, composition.layer_type
    now = entry.build(original, entry.sizes(original), device="meta")
    for sizes in ((layouts[0].length, layouts[1].length), first[:2]):
        emptied = any(n and not m for n, m in zip(entry.sizes(original), sizes, strict=True))
        if emptied or not _are_of_one_kind(now, entry.build(original, sizes, device="meta")):
            return True
    return False


def _are_of_one_kind(before: nn.Module, after: nn.Module) -> bool:
    """Whether the channels of two layers lie alike."""
    now, then = layer_type_of(before), layer_type_of(after)
    if now is None or then is None or type(now) is not type(then):
        return False
    return now.tensors(before) == then.tensors(after)
