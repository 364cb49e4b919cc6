"""Removing units from a network of plain layers, with a record of every change.

This is the inverse of growth, on the same channel graph. The caller chooses the units; if no live
unit reads them, the network computes the same as before.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.analysis.channels.channel_axes import Axis, Run
from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.analysis.units import Unit, UnitNumbers, along_tensors
from splitgrow.growth.edits import NumberChange
from splitgrow.growth.module_numbers import set_number_
from splitgrow.layers.tensor_holder import layer_at, replace_tensor_
from splitgrow.layers.types import LayerType, Stock, TensorBlock, layer_type_of
from splitgrow.utils.text_tables import aligned

UnitsByGroup = Mapping[int, Collection[int]]
"""Some units of each group, counted from 0."""


@dataclass(frozen=True)
class NarrowedLayer:
    """The change of one layer.

    Attributes:
        name: The layer's module path.
        kind: The name of its type, such as ``Conv2d``.
        in_width: The number of input channels before and after.
        width: The number of output channels before and after.
        parameters: The number of its parameters before and after.
    """

    name: str
    kind: str
    in_width: tuple[int, int]
    width: tuple[int, int]
    parameters: tuple[int, int]


@dataclass(frozen=True)
class Narrowing:
    """The frozen record of the units removed from a network.

    Attributes:
        layers: The change of each layer that lost inputs or units, in order of execution.
        numbers: The changes of numbers that modules hold.
        parameters: The number of the network's parameters before and after.
        refusal: Why no unit can be removed, for any weights; empty if there is no such reason.
    """

    layers: tuple[NarrowedLayer, ...]
    numbers: tuple[NumberChange, ...]
    parameters: tuple[int, int]
    refusal: str = ""

    def __str__(self) -> str:
        if not self.layers:
            return f"nothing is taken out{f': {self.refusal}' if self.refusal else ''}"
        before, after = self.parameters
        lines = [f"{before:,} -> {after:,} parameters, {len(self.layers)} layers narrower"]
        table: list[tuple[str, ...]] = [("layer", "type", "inputs", "units", "parameters")]
        for layer in self.layers:
            pairs = (layer.in_width, layer.width, layer.parameters)
            table.append((layer.name, layer.kind, *map(_arrow, pairs)))
        lines += aligned(table)
        for number in self.numbers:
            path = f"{number.module}.{number.attribute}".removeprefix(".")
            lines.append(f"  {path}: {_arrow(number.value)}")
        return "\n".join(lines)


def _arrow(pair: tuple[float, float]) -> str:
    return f"{pair[0]:,} -> {pair[1]:,}" if pair[0] != pair[1] else f"{pair[0]:,}"


class Chosen:
    """Some units, on every axis that they lie on.

    Args:
        groups: The store of groups.
        units: The units.
    """

    def __init__(self, groups: Groups, units: UnitsByGroup) -> None:
        self._numbers = UnitNumbers(groups)
        for group in units:
            self._numbers.on((Run(group, 1),))
        chosen = (Unit(group, nth) for group, own in units.items() for nth in own)
        self._chosen = self._numbers.marks(chosen).nonzero().flatten()

    def on(self, axis: Axis) -> Tensor:
        """The positions of an axis that hold one of the units, as bools."""
        return torch.isin(self._numbers.on(axis), self._chosen)


def narrow_(network: nn.Module, graph: ChannelGraph, gone: UnitsByGroup) -> Narrowing:
    """Removes units from a network in place, on every axis that they lie on.

    Args:
        network: A network of plain layers. Its layers stay the same objects and get new tensors.
        graph: The channel graph of the network before; it is not changed.
        gone: The units. At least one of every group must stay, and the groups must be free.
    """
    groups = graph.groups
    units = Chosen(groups, gone)
    full = [group for group, own in gone.items() if len({*own}) == groups.width(group)]
    assert not full, "a group would have no units left"
    assert not any(groups.is_fixed(group) for group in gone), "the width of a group is fixed"
    before, modules = count_parameters(network), dict(network.named_modules())
    layers = []
    for node in graph.nodes.values():
        ins, outs = ~units.on(node.ins), ~units.on(node.outs)
        if node.followed and not (bool(ins.all()) and bool(outs.all())):
            layer = layer_at(modules, node.name, node.use)
            layers.append(_narrow_layer_(layer, node, ins, outs))
            if isinstance(layer, TensorBlock):
                replace_tensor_(modules, node.name, layer.value)
    numbers = []
    for number in graph.numbers:
        stays = ~units.on(number.axis)
        if not bool(stays.all()):
            value = (len(stays), int(stays.sum()))
            set_number_(network.get_submodule(number.module), number.attribute, value[1])
            numbers.append(NumberChange(number.module, number.attribute, value))
    return Narrowing(tuple(layers), tuple(numbers), (before, count_parameters(network)))


def count_parameters(network: nn.Module) -> int:
    """The number of parameters of a module."""
    return sum(parameter.numel() for parameter in network.parameters())


def _narrow_layer_(module: Stock, node: LayerNode, ins: Tensor, outs: Tensor) -> NarrowedLayer:
    entry = layer_type_of(module)
    assert entry is not None, node.name
    before = count_parameters(module)
    sizes = (int(ins.sum()), int(outs.sum()))
    numbers = _numbers_at(entry, module, sizes)
    for name, along in along_tensors(module, ins, outs).items():
        tensor: Tensor | None = getattr(module, name)
        if tensor is None:
            continue
        with torch.no_grad():
            part = tensor
            for dim, stays in along.items():
                part = part.index_select(dim, stays.nonzero().flatten().to(tensor.device))
        if isinstance(tensor, nn.Parameter):
            part = nn.Parameter(part, tensor.requires_grad)
        setattr(module, name, part)
    module.__dict__.update(numbers)
    widths = ((len(ins), sizes[0]), (len(outs), sizes[1]))
    return NarrowedLayer(node.name, node.kind, *widths, (before, count_parameters(module)))


def _numbers_at(entry: LayerType, module: Stock, sizes: tuple[int, int]) -> dict[str, int]:
    """The numbers in a layer's attributes, such as its groups, that change with its size."""
    built = vars(entry.build(module, sizes, device="meta"))
    own = vars(module)
    numbers = {key: value for key, value in built.items() if type(value) is int and key in own}
    return {key: value for key, value in numbers.items() if own[key] != value}
