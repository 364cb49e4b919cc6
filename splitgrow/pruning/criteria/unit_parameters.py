"""The parameters along units: which weights make each unit, which read it, which scale it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
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
        role: How it counts for these units.
        dim: The dimension.
        units: The number of the unit at each position there, among `ParametersOfUnits.groups`; -1
            where none of them lies.
    """

    layer: str
    name: str
    role: Role
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

    def gradient(self, gradients: Mapping[int, Tensor | None]) -> Tensor | None:
        """Its gradient.

        Args:
            gradients: Those of the blocks' parameters, by these parameters' ids.

        Returns:
            A tensor like `value`; None if a part has none.
        """
        whole = torch.zeros(self._composition.shape(self.name), dtype=torch.float64)
        for index, value in self._composition.parts(self.name):
            part = gradients.get(id(value))
            if part is None:
                return None
            carry = self._composition.carry(index)
            factor = self._composition.merging.carried_over(
                self.name, torch.ones_like(part, dtype=torch.float64), carry
            )
            part = (part.double() / factor).cpu()  # by the plain tensor, of which it is a part
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
        parameters: The parameters; one that several layers share comes once for each way to lie.
    """

    def __init__(
        self, graph: ChannelGraph, modules: Mapping[str, nn.Module], groups: Iterable[int]
    ) -> None:
        numbers, self.groups, count = UnitNumbers(graph.groups), dict[int, tuple[int, int]](), 0
        own = []
        for group in groups:
            units = numbers.on((Run(group, 1),))
            self.groups[group] = count, count + len(units)
            count += len(units)
            own.append(units)
        self.count = count
        self._numbers, self._own = numbers, torch.cat([*own, torch.zeros(0, dtype=torch.long)])
        self.parameters = [*self._found(graph, modules)]

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
            at = parameter.units[there].to(values.device)
            found = found.index_add(0, at, values[there.to(values.device)].to(found))
        return torch.zeros(self.count, dtype=torch.float64) if found is None else found

    def covered(
        self, roles: Iterable[Role], parameters: Iterable[UnitParameter] | None = None
    ) -> Tensor:
        """For each unit whether a parameter of some role lies along it.

        Args:
            roles: The roles.
            parameters: The parameters that count; all by default.
        """
        chosen, marks = {*roles}, torch.zeros(self.count, dtype=torch.bool)
        for parameter in self.parameters if parameters is None else parameters:
            if parameter.role in chosen:
                marks[parameter.units[parameter.units >= 0]] = True
        return marks

    def on(self, axis: Axis) -> Tensor:
        """The numbers of the units on each position of an axis; -1 for others."""
        units = self._numbers.on(axis)
        at = torch.searchsorted(self._own.sort().values, units)
        order = self._own.argsort()
        found = order[at.clamp(max=max(0, len(order) - 1))] if len(order) else at
        known = self._own[found] == units if len(order) else torch.zeros_like(units).bool()
        return torch.where(known, found, -1)

    def _found(
        self, graph: ChannelGraph, modules: Mapping[str, nn.Module]
    ) -> Iterator[UnitParameter]:
        seen = set[tuple[int, int]]()
        for node in graph.nodes.values():
            if not node.followed:
                continue
            ins = self.on(node.ins)
            outs = self.on(node.outs)
            if not bool((ins >= 0).any()) and not bool((outs >= 0).any()):
                continue
            layer = layer_at(modules, node.name, node.use)
            composition = split_of(layer).composition()
            known = composition.layer_type.tensors(composition.original)
            for name, along in along_tensors(layer, ins, outs).items():
                first = composition.merging.value(composition.original, name)
                if first is None or not first.is_floating_point():
                    continue
                if name not in vars(composition.original)["_parameters"] and name not in (
                    computed_names(composition.original)
                ):
                    continue  # a buffer, such as a running mean
                for dim, units in along.items():
                    mark = id(getattr(composition.original, name)), dim
                    if mark not in seen and bool((units >= 0).any()):
                        seen.add(mark)
                        role = _role(composition, name, known[name][dim])
                        yield UnitParameter(node.name, name, role, dim, units, composition)


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
