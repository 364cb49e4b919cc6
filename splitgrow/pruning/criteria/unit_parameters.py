"""The parameters along units: which weights make each unit, which read it, which scale it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.analysis.channels.channel_axes import Axis, Run
from splitgrow.analysis.units import UnitNumbers, along_tensors
from splitgrow.layers.composition import Composition
from splitgrow.layers.tensor_holder import layer_at, split_of
from splitgrow.layers.types import Along, TensorBlock
from splitgrow.layers.types.parametrized_layers import computed_names
from splitgrow.utils.spans import regions

Role: TypeAlias = Literal["makes", "reads", "scales", "shifts", "other"]
"""How a parameter counts for a unit: its weights make the unit or read it, or it is one number."""


@dataclass(frozen=True, eq=False)
class UnitParameter:
    """A parameter of a layer, with units along one of its dimensions; of a grown layer it is whole.

    Attributes:
        layer: The layer's name.
        name: The parameter's name in the plain layer.
        roles: How it counts for these units; one that several layers share can have several roles.
        dim: The dimension.
        units: The number of the unit at each position there, among `ParametersOfUnits.groups`; -1
            where none of them lies.
    """

    layer: str
    name: str
    roles: frozenset[Role]
    dim: int
    units: Tensor
    _composition: Composition

    @property
    def value(self) -> Tensor:
        """Its values, which nobody else holds."""
        value = self._composition.value(self.name)
        assert value is not None
        return value.detach()

    @property
    def differentiable(self) -> Tensor:
        """Its values, differentiable by the parameters of the blocks that make it."""
        value = self._composition.assembled(self.name)
        assert value is not None
        return value

    @property
    def factors(self) -> Tensor:
        """Its values as they multiply channels: some norms have factors of one more."""
        form = getattr(self._composition.merging, "form", None)
        return self.value + (form.offset if form is not None else 0)

    @property
    def counts(self) -> Tensor:
        """The number of its weights at each position of the dimension."""
        count = len(self.units)
        return torch.full((count,), math.prod(self._composition.shape(self.name)) / count)

    @property
    def parts(self) -> list[nn.Parameter]:
        """The parameters of the blocks that make it."""
        found = (getattr(module, self.name, None) for module in self._composition.modules)
        return [each for each in found if isinstance(each, nn.Parameter)]

    @property
    def is_computed(self) -> bool:
        """Whether other tensors make it at each call, so that it has no gradient of its own."""
        modules = self._composition.modules
        return any(self.name in computed_names(each) for each in modules) or any(
            value is not getattr(modules[index], self.name, None)
            for index, value in self._composition.parts(self.name)
        )

    def gradient(self, gradients: Mapping[int, Tensor]) -> Tensor:
        """Its gradient, in float64 on the CPU.

        Args:
            gradients: Those of the blocks' parameters, by these parameters' ids.

        Returns:
            A tensor like `value`.
        """
        whole = torch.zeros(self._composition.shape(self.name), dtype=torch.float64)
        for index, value in self._composition.parts(self.name):
            part = gradients[id(value)].double().cpu()
            for there, own in regions(self._composition.places(index, self.name), part.dim()):
                whole[there] = part[own]
        return whole

    def sums(self, elements: Tensor) -> Tensor:
        """The sums over all other dimensions of a tensor like `value`, along `dim`."""
        others = [dim for dim in range(elements.dim()) if dim != self.dim]
        return elements.sum(others) if others else elements


class ParametersOfUnits:
    """All parameters that lie along the units of some groups.

    Args:
        graph: The channel graph.
        modules: The model's modules by path.
        groups: The groups.

    Attributes:
        groups: By group the numbers of its first unit and of the one after its last.
        count: The number of units.
        parameters: The parameters; one that several layers share comes once for each dimension
            along which units lie.
    """

    def __init__(
        self, graph: ChannelGraph, modules: Mapping[str, nn.Module], groups: Iterable[int]
    ) -> None:
        self._numbers = UnitNumbers(graph.groups)
        self.groups: dict[int, tuple[int, int]] = {}
        count = 0
        for group in groups:  # they get the first numbers
            units = self._numbers.on((Run(group, 1),))
            self.groups[group] = count, count + len(units)
            count += len(units)
        self.count = count
        self.parameters = self._found(graph, modules)

    def by_group(self, scores: Tensor) -> dict[int, Tensor]:
        """A number for each unit, as one tensor by group."""
        return {group: scores[start:end] for group, (start, end) in self.groups.items()}

    def total(self, parameters: Iterable[tuple[UnitParameter, Tensor]]) -> Tensor:
        """The sum for each unit of numbers at the positions of parameters.

        Args:
            parameters: Parameters with a number for each position of their dimension.
        """
        found: Tensor | None = None
        for parameter, values in parameters:
            there = (parameter.units >= 0).nonzero().flatten()
            if found is None:
                found = torch.zeros(self.count, dtype=values.dtype, device=values.device)
            at = parameter.units[there].to(found.device)
            found = found.index_add(0, at, values[there.to(values.device)].to(found))
        return torch.zeros(self.count, dtype=torch.float64) if found is None else found

    def covered(self, *roles: Role, among: Iterable[UnitParameter] | None = None) -> Tensor:
        """For each unit whether a parameter of some role lies along it.

        Args:
            roles: The roles.
            among: The parameters that count; all by default.
        """
        marks = torch.zeros(self.count, dtype=torch.bool)
        for parameter in self.parameters if among is None else among:
            if not parameter.roles.isdisjoint(roles):
                marks[parameter.units[parameter.units >= 0]] = True
        return marks

    def on(self, axis: Axis) -> Tensor:
        """The numbers of the units on each position of an axis; -1 for others."""
        units = self._numbers.on(axis) - 1  # 0 is what the graph takes for constant
        return torch.where(units < self.count, units, -1)

    def _found(self, graph: ChannelGraph, modules: Mapping[str, nn.Module]) -> list[UnitParameter]:
        found = dict[tuple[object, int], UnitParameter]()
        for node in graph.nodes.values():
            ins, outs = self.on(node.ins), self.on(node.outs)
            if not node.followed or not bool((torch.cat([ins, outs]) >= 0).any()):
                continue
            layer = layer_at(modules, node.name, node.use)
            composition = split_of(layer).composition()
            known = composition.layer_type.tensors(composition.original)
            for name, along in along_tensors(layer, ins, outs).items():
                own = _identity(composition.original, name)
                for dim, units in along.items() if own is not None else ():
                    if not bool((units >= 0).any()):
                        continue
                    roles = frozenset({_role(composition, name, known[name][dim])})
                    new = UnitParameter(node.name, name, roles, dim, units, composition)
                    first = found.setdefault((own, dim), new)
                    found[own, dim] = replace(first, roles=first.roles | roles)
        return [*found.values()]


def _identity(module: nn.Module, name: str) -> object:
    """The same for all layers that share a parameter; None for buffers and for no numbers."""
    parameter = module._parameters.get(name)  # noqa: SLF001
    if parameter is not None:
        return id(parameter) if parameter.is_floating_point() else None
    return (id(module), name) if name in computed_names(module) else None


def _role(composition: Composition, name: str, along: Along) -> Role:
    entry, original = composition.layer_type, composition.original
    diagonal = entry.diagonal(original)
    if along.reads and not diagonal and not entry.looks_up:
        return "reads"
    if isinstance(original, TensorBlock):
        roles: dict[str, Role] = {"scales": "scales", "weighs": "makes", "meets": "other"}
        return roles[original.use.role]
    if name in entry.shifts:
        return "shifts"
    value = entry.merging.value(original, name)
    if value is not None and value.dim() > 1:
        return "makes"
    norm = entry.norm(original) is not None or entry.merging.couples
    return "scales" if norm and diagonal else "other"
