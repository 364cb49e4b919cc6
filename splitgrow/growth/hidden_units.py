"""The hidden units of an edit: new ones that may have any values, made and read by layers."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.analysis.channels.channel_axes import groups_of
from splitgrow.growth.edits import Edit
from splitgrow.layers.types import known_layer_type


def hidden_groups(
    edit: Edit, graph: ChannelGraph, originals: Mapping[str, nn.Module]
) -> frozenset[int]:
    """The groups whose new units may have any values, and that a layer makes and another one reads.

    Channels of the model's input are not made by a layer, and units that only leave the model, or
    that stand for the rows of a table, are not read by weights.

    Args:
        edit: The edit.
        graph: The channel graph.
        originals: The original layers of its changes, by name.
    """
    made: set[int] = set()
    read: set[int] = set()
    for name, original in originals.items():
        entry, node = known_layer_type(original), graph.nodes.get(name)
        if node is None or entry.diagonal(original):
            continue
        outs = groups_of(graph.groups.resolve(node.outs))
        made.update(outs)
        if not entry.looks_up:
            read.update(groups_of(graph.groups.resolve(node.ins)))
        if entry.reads_back(original):
            read.update(outs)
    any_values = frozenset() if edit.inputs else edit.growth.keys() - edit.ways.keys()
    return frozenset(any_values & made & read)
