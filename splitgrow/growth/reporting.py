"""A grown model as data for tables and drawings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from splitgrow.growth.history_lookup import history_of
from splitgrow.layers.channel_layout import Layout
from splitgrow.layers.split_layer import BlockKind, SplitLayer

AreaSpans = tuple[tuple[int, int], ...]
"""Stretches of positions as (start, stop)."""


@dataclass(frozen=True)
class BlockArea:
    """The place of a block in the weight of its grown layer.

    Attributes:
        kind: The block's role: "original", "new" or "helper".
        generation: The generation that it belongs to.
        rows: The units that it computes.
        columns: The input channels that it reads.
    """

    kind: BlockKind
    generation: int
    rows: AreaSpans
    columns: AreaSpans


def block_map(model: nn.Module, layer: str) -> tuple[BlockArea, ...]:
    """The blocks of a layer as rectangles of its (units x input channels) weight.

    A layer that has not grown is one original block.

    Raises:
        ValueError: If the model has no such layer.
        SplitGrowError: If the model was never made growable.

    Example:
        >>> import torch, splitgrow
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> edit = net.expand_layer("0", 2)
        >>> for area in block_map(net, "1"):
        ...     print(area.kind, area.rows, area.columns)
        original ((0, 1),) ((0, 3),)
        helper ((0, 1),) ((3, 5),)
    """
    history = history_of(model)
    graph = history.graph
    if layer not in graph.nodes:
        raise ValueError(f"no layer {layer!r}; there are {', '.join(graph.nodes)}")
    node = graph.nodes[layer]
    module = history.modules.get(node.path)  # a tensor that has not grown is no module
    if not isinstance(module, SplitLayer):
        units, inputs = graph.groups.length(node.outs), graph.groups.length(node.ins)
        return (BlockArea("original", 0, ((0, units),), ((0, inputs),)),)
    diagonal = module.layer_type.diagonal(module.original)
    areas = []
    for block in module.blocks:
        edit = block.edit
        rows = _spans(module.outs, block.makes)
        columns = _spans(module.ins, block.makes if diagonal else block.reads)
        generation = history.edits[edit - 1].generation if edit else 0
        areas.append(BlockArea(block.kind, generation, rows, columns))
    return tuple(areas)


def _spans(layout: Layout, chosen: Callable[[int], bool]) -> AreaSpans:
    return tuple((start, start + length) for start, length in layout.spans(chosen))
