"""Dead units: the units that no output of a network depends on, by the present weights.

A unit is alive if the model returns it, or if a live output reads it by a nonzero weight. A layer
can do without a unit whose value is known for every input: zeros add nothing, and a bias can hold
the part of other constants.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from torch import Tensor, nn

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.analysis.channels.channel_axes import Axis, groups_of
from splitgrow.analysis.units import Unit, UnitNumbers
from splitgrow.layers.tensor_holder import layer_at
from splitgrow.layers.types import layer_type_of
from splitgrow.pruning.dead_units.constants import Known, passes_constants
from splitgrow.pruning.dead_units.weight_connections import (
    has_weights,
    readers_of,
    sections,
    spread_,
)


def dead_units(
    graph: ChannelGraph,
    modules: Mapping[str, nn.Module],
    outputs: Collection[Axis],
    read: Mapping[str, Known | None],
) -> dict[int, list[int]]:
    """The dead units of each group, maybe all of them.

    Args:
        graph: The channel graph.
        modules: The network's modules by path.
        outputs: The axes of the network's outputs.
        read: The known channels of each layer's input, the same for every input of the network.
    """
    numbers, found = UnitNumbers(graph.groups), []
    for node in graph.nodes.values():
        ins, outs = numbers.on(node.ins), numbers.on(node.outs)
        module = layer_at(modules, node.name, node.use)
        entry = layer_type_of(module)
        if entry is not None and node.followed and has_weights(entry, module):
            reader, *back = readers_of(sections(entry, module), ins, outs)
            known = read.get(node.name)
            if known is not None:
                reader = replace(reader, matters=~made_up_for(module, known))
            found += [reader, *back]
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
    """The groups whose units can be removed, in order of execution."""
    kept: set[int] = set()
    for axis in outputs:
        kept.update(groups_of(graph.groups.resolve(axis)))
    found: dict[int, None] = {}
    for node in graph.nodes.values():
        own = [g for axis in (node.ins, node.outs) for g in groups_of(graph.groups.resolve(axis))]
        found.update(dict.fromkeys(own))
        if node.looks_up:  # inputs say which rows there are
            kept.update(groups_of(graph.groups.resolve(node.ins)))
        if not _is_open(layer_at(modules, node.name, node.use)):
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
    """The known inputs that a layer can do without, as bools.

    It can do without zeros, and without other constants if it has a bias to hold them. A bias is
    never added: that would be a layer of another structure.
    """
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter) and passes_constants(module):
        return known.known
    return known.zero
