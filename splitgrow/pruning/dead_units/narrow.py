"""Removing units from a network of plain layers, with a record of every change.

This is the inverse of growth, on the same channel graph. The caller chooses the units; if no live
unit reads them, the network computes the same as before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.growth.edit_parts import NumberChange
from splitgrow.growth.module_numbers import set_number_
from splitgrow.growth.shrinking.narrowing import narrowed, put_narrowed_, smaller_parameters
from splitgrow.pruning.shrinking.chosen_units import (
    Chosen,
    UnitsByGroup,
    numbers_without,
    removals_of,
)
from splitgrow.utils.rollback import Undo
from splitgrow.utils.text_tables import Rows, Tabular

_UNITS = 3
"""The column of the numbers of units."""


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


@dataclass(frozen=True, repr=False)
class Narrowing(Tabular):
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

    def _head(self) -> str:
        if not self.layers:
            return f"nothing is taken out{f': {self.refusal}' if self.refusal else ''}"
        before, after = self.parameters
        return f"{before:,} -> {after:,} parameters, {len(self.layers)} layers narrower"

    def _rows(self) -> Rows:
        if not self.layers:
            return ()
        table: list[tuple[str, ...]] = [("layer", "type", "inputs", "units", "parameters")]
        for layer in self.layers:
            pairs = (layer.in_width, layer.width, layer.parameters)
            table.append((layer.name, layer.kind, *map(_arrow, pairs)))
        return table

    def _notes(self) -> list[str]:
        paths = [f"{item.module}.{item.attribute}".removeprefix(".") for item in self.numbers]
        values = [_arrow(item.value) for item in self.numbers]
        return [f"{path}: {value}" for path, value in zip(paths, values, strict=True)]

    def _bars(self) -> dict[int, list[tuple[int, int]]]:
        return {_UNITS: [layer.width for layer in self.layers]}


def _arrow(pair: tuple[float, float]) -> str:
    return f"{pair[0]:,} -> {pair[1]:,}" if pair[0] != pair[1] else f"{pair[0]:,}"


def narrow_(network: nn.Module, graph: ChannelGraph, gone: UnitsByGroup) -> Narrowing:
    """Removes units from a network in place, on every axis that they lie on.

    Args:
        network: A network of plain layers. Its layers stay the same objects and get new tensors.
        graph: The channel graph of the network before; it is not changed.
        gone: The units. At least one of every group must stay, and the groups must be free.
    """
    groups = graph.groups
    full = [group for group, own in gone.items() if len({*own}) == groups.width(group)]
    assert not full, "a group would have no units left"
    assert not any(groups.is_fixed(group) for group in gone), "the width of a group is fixed"
    before, modules = count_parameters(network), dict(network.named_modules())
    chosen = Chosen(groups, gone)
    planned = [narrowed(modules, removal) for removal in removals_of(graph, chosen)]
    sizes = [count_parameters(layer.split) for layer in planned]
    with torch.inference_mode(mode=False), torch.no_grad():
        put_narrowed_(modules, planned, smaller_parameters(planned), Undo())
    numbers = numbers_without(graph, chosen)
    for number in numbers:
        set_number_(network.get_submodule(number.module), number.attribute, number.value[1])
    layers = tuple(
        NarrowedLayer(
            *(layer.removal.name, layer.removal.kind, layer.removal.in_width, layer.removal.width),
            (size, count_parameters(layer.split)),
        )
        for layer, size in zip(planned, sizes, strict=True)
    )
    return Narrowing(layers, numbers, (before, count_parameters(network)))


def count_parameters(network: nn.Module) -> int:
    """The number of parameters of a module."""
    return sum(parameter.numel() for parameter in network.parameters())
