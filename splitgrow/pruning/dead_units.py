"""Which units of a network count: those that its outputs depend on, by the weights as they are.

A unit counts if the model returns it, or if an output that counts reads it by a weight that is not
zero. What is read can be made up for where it is known whatever the input: zeros add nothing, and
other constants add what a bias can hold.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.analysis.channels.channel_axes import Axis, groups_of
from splitgrow.layers.types import layer_type_of
from splitgrow.pruning.constants import Known, passes_constants
from splitgrow.pruning.narrow import per_position, per_unit
from splitgrow.pruning.weight_connections import Section, has_weights, inputs_read, readers


@dataclass(frozen=True)
class Reader:
    """A layer whose outputs read its inputs by weights.

    Attributes:
        node: The layer in the graph.
        sections: Which outputs read which inputs.
        matters: For each input whether its value matters: it can not be made up for.
    """

    node: LayerNode
    sections: list[Section]
    matters: Tensor


def dead_units(
    graph: ChannelGraph,
    modules: Mapping[str, nn.Module],
    outputs: Collection[Axis],
    read: Mapping[str, Known | None],
) -> dict[int, list[int]]:
    """For each group the units that do not count, which may be all of them.

    Args:
        graph: The channel graph.
        modules: The network's modules by path.
        outputs: The axes of what the network returns.
        read: What is known of the layers' inputs, whatever the network is given.
    """
    found = [
        reader
        for node in graph.nodes.values()
        if (reader := _reader(node, modules[node.name], read.get(node.name))) is not None
    ]
    live = {
        group: torch.zeros(graph.groups.width(group), dtype=torch.bool)
        for group in _removable(graph, modules, outputs)
    }
    _spread_(graph, found, live)
    return {
        group: (~units).nonzero().flatten().tolist()
        for group, units in live.items()
        if not bool(units.all())
    }


def _removable(
    graph: ChannelGraph, modules: Mapping[str, nn.Module], outputs: Collection[Axis]
) -> list[int]:
    """The groups whose units can go at all, in order of execution."""
    kept: set[int] = set()
    for axis in outputs:
        kept.update(groups_of(graph.groups.resolve(axis)))
    found: dict[int, None] = {}
    for node in graph.nodes.values():
        own = [g for axis in (node.ins, node.outs) for g in groups_of(graph.groups.resolve(axis))]
        found.update(dict.fromkeys(own))
        if not _is_open(modules[node.name]):
            kept.update(own)
    return [group for group in found if group not in kept and not graph.groups.is_fixed(group)]


def _is_open(module: nn.Module) -> bool:
    """Whether it is known which of a layer's channels depend on which."""
    entry = layer_type_of(module)
    if entry is None or entry.merging.couples or entry.merging.computes_weight:
        return False
    by_itself = entry.diagonal(module) or not entry.reads_channels
    return by_itself or has_weights(entry, module)


def _reader(node: LayerNode, module: nn.Module, known: Known | None) -> Reader | None:
    entry = layer_type_of(module)
    if entry is None or not node.followed or not has_weights(entry, module):
        return None
    matters = torch.ones(entry.sizes(module)[0], dtype=torch.bool)
    if known is not None:
        matters = ~made_up_for(module, known)
    return Reader(node, readers(entry, module), matters)


def made_up_for(module: nn.Module, known: Known) -> Tensor:
    """For each input that is known whether the layer can do without it.

    It can without zeros, and without other constants where it has a bias to add them to. A bias is
    never added: that would be a layer of another structure.
    """
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter) and passes_constants(module):
        return known.known
    return known.zero


def _spread_(graph: ChannelGraph, found: list[Reader], live: dict[int, Tensor]) -> None:
    """Has all units count that those read which count, in place."""
    changed = True
    while changed:
        changed = False
        for reader in reversed(found):
            outputs = per_position(graph.groups, reader.node.outs, live)
            inputs = inputs_read(reader.sections, outputs, len(reader.matters)) & reader.matters
            for group, units in per_unit(graph.groups, reader.node.ins, inputs).items():
                if group in live and bool((units & ~live[group]).any()):
                    live[group] |= units
                    changed = True
