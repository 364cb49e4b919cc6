"""Putting blocks in place: a split layer where there was a stock layer, or more blocks in one.

The blocks may be new, or those of a network that is rebuilt from its journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from splitgrow.growth.module_numbers import change_
from splitgrow.growth.prepared import PreparedEdit, PreparedLayer
from splitgrow.layers.block_roles import Block
from splitgrow.layers.channel_layout import Layout
from splitgrow.layers.hooks import hand_over_
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import layer_at, put_tensor_
from splitgrow.layers.types import TensorBlock
from splitgrow.utils.module_slots import Holders, holders_in, put_in_place_
from splitgrow.utils.rollback import Undo


def widen_(prepared: PreparedEdit, modules: Mapping[str, nn.Module], undo: Undo) -> None:
    """Puts prepared blocks in place, and sets the numbers that follow."""
    in_place = all(
        layer_at(modules, item.change.name, item.change.use) is item.split
        for item in prepared.layers.values()
    )
    holders = {} if in_place else holders_in(prepared.model)
    for item in prepared.layers.values():
        place_(modules, item, holders, undo)
    for number in prepared.edit.numbers:
        change_(modules[number.module], number.attribute, number.value[1], undo)


def place_(
    modules: Mapping[str, nn.Module], item: PreparedLayer, holders: Holders, undo: Undo
) -> None:
    """Puts a layer's new blocks in place, and a split layer where there was a stock layer."""
    split, made = item.split, item.composition
    set_blocks_(split, (made.modules, made.blocks), (made.ins, made.outs), undo)
    replaced = layer_at(modules, item.change.name, item.change.use)
    if isinstance(replaced, TensorBlock):
        put_tensor_(modules, item.change.name, split, undo)
    elif replaced is not split:
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
        blocks: The blocks, and their roles.
        layouts: The layouts of its inputs and outputs.
        undo: Takes it back.
    """
    undo.keep(vars(split))
    split.set_blocks(*blocks, *layouts)
