"""Putting blocks in place: a split layer where there was a stock layer, or more blocks in one.

Nothing here knows why: the blocks may be new, or those of a network that is put together again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from splitgrow.growth.edits import LayerChange
from splitgrow.growth.initializers import Initializer, silent_channels
from splitgrow.growth.planning import build_block, planned_blocks
from splitgrow.layers.channel_layout import Layout
from splitgrow.layers.freezing import held
from splitgrow.layers.hooks import hand_over_
from splitgrow.layers.split_layer import Block, SplitLayer
from splitgrow.utils.module_slots import Holders, put_in_place_
from splitgrow.utils.rollback import Undo


@dataclass(frozen=True)
class Prepared:
    """A layer's change with everything that it needs, made but not yet put in place."""

    change: LayerChange
    split: SplitLayer
    modules: list[nn.Module]
    blocks: list[Block]
    ins: Layout
    outs: Layout


def prepare(
    modules: Mapping[str, nn.Module],
    edit: int,
    change: LayerChange,
    initialise: Initializer | None = None,
) -> Prepared:
    """Makes the blocks of a layer's change; nothing is put in place yet.

    Args:
        modules: The model's modules by path.
        edit: The number of the edit.
        change: What is to happen to the layer.
        initialise: Gives the blocks their values; None for blocks on the meta device, which have
            none.
    """
    module = modules[change.name]
    split = module if isinstance(module, SplitLayer) else SplitLayer(module)
    if split is not module:
        # A norm that is held is in evaluation whatever the mode; what is new must not be.
        parent = modules[change.name.rpartition(".")[0]]
        split.training = parent.training if held(module) else module.training
    before = (change.in_width[0], change.width[0])
    gain = (change.in_width[1] - before[0], change.width[1] - before[1])
    blocks, purposes = list(split), list(split.blocks)
    layer = split.layer_type, split.original
    for kind, sizes in planned_blocks(*layer, before, gain).items():
        if initialise is None:
            block = build_block(*layer, kind, sizes, device="meta")
        else:
            block = build_block(*layer, kind, sizes)
            initialise(block, kind, silent_channels(change, kind))
            _match_memory_format(block, split.original)
        blocks.append(block.train(split.training))
        purposes.append(Block("helper" if kind == "helper" else "new", edit))
    return Prepared(
        change,
        split,
        blocks,
        purposes,
        split.ins.inserted(change.ins, edit),
        split.outs.inserted(change.outs, edit),
    )


def _match_memory_format(block: nn.Module, original: nn.Module) -> None:
    """Keeps a model channels-last that is."""
    weight = getattr(original, "weight", None)
    if weight is None or weight.dim() != 4 or weight.is_contiguous():
        return
    if weight.is_contiguous(memory_format=torch.channels_last):
        block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def place_(modules: Mapping[str, nn.Module], item: Prepared, holders: Holders, undo: Undo) -> None:
    """Puts a layer's new blocks in place, and a split layer where there was a stock layer."""
    split = item.split
    set_blocks_(split, (item.modules, item.blocks), (item.ins, item.outs), undo)
    replaced = modules[item.change.name]
    if replaced is not split:
        hand_over_(replaced, split, undo)
        put_in_place_(holders, replaced, split, undo)


def set_blocks_(
    split: SplitLayer,
    blocks: tuple[Sequence[nn.Module], Sequence[Block]],
    layouts: tuple[Layout, Layout],
    undo: Undo,
) -> None:
    """Gives a split layer other blocks.

    Args:
        split: The layer.
        blocks: The blocks, and what they are for.
        layouts: Where its inputs and outputs come from.
        undo: Takes it back.
    """
    undo.keep(vars(split))
    split.set_blocks(*blocks, *layouts)
