"""Tensors that several layers hold, as a head that has the weight of an embedding.

What grows of such a tensor grows in all its holders, so their axes along its dimensions are tied.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from torch import nn

from splitgrow.analysis.channel_graph import LayerNode
from splitgrow.analysis.channels.channel_axes import Axis
from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.analysis.unsupported_layers import is_sized, refusal_of
from splitgrow.layers.split_layer import SplitLayer, stock
from splitgrow.layers.types import Along, LayerType, layer_type_of, sized_layers


class TiedTensor(NamedTuple):
    """A module that holds a tensor, by its path, and the tensor's name there."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}".removeprefix(".")


def shared_tensors(modules: Mapping[str, nn.Module]) -> dict[int, tuple[TiedTensor, ...]]:
    """The parameters that several modules hold, by their ids, with their holders in order.

    The blocks of a grown layer hold its tensors for it.
    """
    found: dict[int, list[TiedTensor]] = {}
    inside = tuple(f"{name}." for name, m in modules.items() if isinstance(m, SplitLayer) and name)
    for path, module in modules.items():
        if path.startswith(inside):
            continue
        for name, tensor in stock(module)._parameters.items():  # noqa: SLF001
            if tensor is not None:
                found.setdefault(id(tensor), []).append(TiedTensor(path, name))
    return {key: tuple(holders) for key, holders in found.items() if len(holders) > 1}


class Ties:
    """The ties between the layers of a model, as an analysis meets them.

    Attributes:
        shared: The parameters that several modules hold, with their holders.

    Args:
        modules: The model's modules by path.
        groups: The store of groups.
        nodes: The layers of the graph; gets those that forward does not call and that share a
            tensor with one that it calls.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], groups: Groups, nodes: dict[str, LayerNode]
    ) -> None:
        self.shared = shared_tensors(modules)
        self._modules, self._groups, self._nodes = modules, groups, nodes
        self._met: dict[int, dict[TiedTensor, dict[int, Axis]]] = {}

    def meet(self, node: LayerNode, entry: LayerType) -> None:
        """Ties a layer's axes to those of the layers that were met before and share a tensor."""
        layer = stock(self._modules[node.name])
        for name, axes in entry.tensors(layer).items():
            tensor = layer._parameters.get(name)  # noqa: SLF001
            if tensor is None or id(tensor) not in self.shared:
                continue
            holder = TiedTensor(node.name, name)
            met = self._met.setdefault(id(tensor), {})
            own = {dim: _along(node, along) for dim, along in axes.items() if along.sections == 1}
            for dim in axes.keys() - own.keys():
                self._groups.fix(_along(node, axes[dim]), self._reason(id(tensor), holder))
            for other, theirs in met.items():
                self._tie(holder, own, other, theirs)
            met[holder] = own

    def _tie(
        self,
        one: TiedTensor,
        ours: Mapping[int, Axis],
        other: TiedTensor,
        theirs: Mapping[int, Axis],
    ) -> None:
        for dim in ours.keys() | theirs.keys():
            if dim in ours and dim in theirs:
                self._groups.tie(ours[dim], theirs[dim], f"`{one}` is tied to `{other}`")
            else:
                self._groups.fix((*ours.get(dim, ()), *theirs.get(dim, ())), _tied(one, other))

    def settle(self, read: Container[str]) -> tuple[tuple[TiedTensor, ...], ...]:
        """Fixes what would grow of a tensor that forward reads from something else than a layer.

        Args:
            read: The paths of the tensors that forward reads outside of layers' calls.

        Returns:
            The holders of each tensor that several layers hold.
        """
        found = []
        for key, holders in self.shared.items():
            for holder in holders:
                self._meet_uncalled(key, holder)
            met = self._met.get(key, {})
            apart = [holder for holder in holders if holder not in met]
            if any(str(each) in read or self._is_layer(each) for each in apart):
                for holder, axes in met.items():
                    for axis in axes.values():
                        self._groups.fix(axis, self._reason(key, holder))
            elif len(met) > 1:
                found.append(tuple(holder for holder in holders if holder in met))
        return tuple(found)

    def _is_layer(self, holder: TiedTensor) -> bool:
        """Whether a module is a layer, so that its own code reads its tensors."""
        layer = stock(self._modules[holder.module])
        return layer_type_of(layer) is not None or isinstance(layer, sized_layers())

    def _meet_uncalled(self, key: int, holder: TiedTensor) -> None:
        """Adds a layer that forward does not call, and whose tensor grows in one that it calls."""
        met = self._met.get(key, {})
        layer = stock(self._modules[holder.module])
        entry = layer_type_of(layer)
        if not met or holder in met or entry is None or refusal_of(entry, layer):
            return
        along = entry.tensors(layer)
        theirs = next(iter(met.values()))
        sides = {a.side: theirs.get(d) for d, a in along.get(holder.name, {}).items()}
        if entry.reads_channels and "in" not in sides:
            return  # the axis that it reads is not known
        if None in sides.values() or any(a.sections > 1 for a in along[holder.name].values()):
            return
        node = LayerNode(
            holder.module,
            type(layer).__name__,
            is_sized(layer),
            sides.get("in") or (),
            sides["out"] or (),
            entry.looks_up,
        )
        self._nodes[holder.module] = node
        self.meet(node, entry)

    def _reason(self, key: int, holder: TiedTensor) -> str:
        met = self._met.get(key, {})
        others = [other for other in self.shared[key] if other != holder]
        apart = [other for other in others if other not in met]
        return _tied(holder, (apart or others)[0])


def _tied(one: TiedTensor, other: TiedTensor) -> str:
    return f"`{one.module}`: its `{one.name}` is tied to `{other}`"


def _along(node: LayerNode, along: Along) -> Axis:
    return node.ins if along.side == "in" else node.outs


def readers_of_tied(
    ties: Sequence[Sequence[tuple[str, str]]], modules: Mapping[str, nn.Module]
) -> dict[str, frozenset[str]]:
    """The layers that read with a tensor along which another layer makes units.

    Returns:
        By the reader's path those that make the units.
    """
    found: dict[str, frozenset[str]] = {}
    for holders in ties:
        by_dim: dict[int, dict[str, set[str]]] = {}
        for holder in holders:
            for dim, side in _sides(modules, *holder).items():
                by_dim.setdefault(dim, {"in": set(), "out": set()})[side].add(holder[0])
        for each in by_dim.values():
            for reader in each["in"] if each["out"] else ():
                found[reader] = found.get(reader, frozenset()) | each["out"]
    return found


def turned_holders(
    ties: Sequence[Sequence[tuple[str, str]]], modules: Mapping[str, nn.Module]
) -> frozenset[str]:
    """The layers that share a tensor with one before them, and have it the other way round."""
    return frozenset(
        holder[0]
        for holders in ties
        for holder in holders
        if _sides(modules, *holder) != _sides(modules, *holders[0])
    )


def _sides(modules: Mapping[str, nn.Module], path: str, name: str) -> dict[int, str]:
    """The side of a layer, "in" or "out", that each dimension of one of its tensors follows."""
    layer = stock(modules[path])
    entry = layer_type_of(layer)
    assert entry is not None
    return {dim: along.side for dim, along in entry.tensors(layer)[name].items()}
