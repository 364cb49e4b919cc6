"""Which units of a network count: those that its outputs depend on, by the weights as they are.

A unit counts if the model returns it, or if an output that counts reads it by a weight that is not
zero. What is read can be made up for where it is known whatever the input: zeros add nothing, and
other constants add what a bias can hold.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor, nn

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.analysis.channels.channel_axes import Axis, groups_of
from splitgrow.analysis.units import Unit, UnitNumbers
from splitgrow.layers.types import layer_type_of
from splitgrow.pruning.constants import Known, passes_constants
from splitgrow.pruning.weight_connections import has_weights, reader_of, sections, spread_


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
    numbers, found = UnitNumbers(graph.groups), []
    for node in graph.nodes.values():
        ins, outs = numbers.on(node.ins), numbers.on(node.outs)
        module, kind = modules[node.name], layer_type_of(modules[node.name])
        if kind is not None and node.followed and has_weights(kind, module):
            reader, known = reader_of(sections(kind, module), ins, outs), read.get(node.name)
            if known is not None:
                reader = replace(reader, matters=~made_up_for(module, known))
            found.append(reader)
    removable = {
        group: [Unit(group, nth) for nth in range(graph.groups.width(group))]
        for group in _removable(graph, modules, outputs)
    }
    live = ~numbers.marks({unit for units in removable.values() for unit in units})
    spread_(live, found)
    dead = numbers.chosen(~live)
    gone = {group: [u.nth for u in units if u in dead] for group, units in removable.items()}
    return {group: units for group, units in gone.items() if units}


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


def made_up_for(module: nn.Module, known: Known) -> Tensor:
    """For each input that is known whether the layer can do without it.

    It can without zeros, and without other constants where it has a bias to add them to. A bias is
    never added: that would be a layer of another structure.
    """
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter) and passes_constants(module):
        return known.known
    return known.zero
