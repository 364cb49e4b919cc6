"""Preparing an edit: makes its new blocks and helpers, and puts nothing in place yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.analysis.channels.channel_axes import Axis
from splitgrow.analysis.units import Place, Unit, along_tensors, layer_places
from splitgrow.errors import UnsupportedLayerError
from splitgrow.growth.edit_parts import LayerChange
from splitgrow.growth.edits import Edit
from splitgrow.growth.hidden_units import hidden_groups
from splitgrow.growth.planned_blocks import build_block, planned_blocks
from splitgrow.layers.block_roles import Block
from splitgrow.layers.composition import Composition
from splitgrow.layers.freezing import held
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import layer_at, split_of
from splitgrow.layers.ties import tie_blocks_
from splitgrow.layers.types import UNCHANGED, Join, LayerType, Start, TensorAxes
from splitgrow.layers.types.parametrized_layers import computed_names
from splitgrow.layers.weight_views import memory_format_of
from splitgrow.utils.spans import regions


@dataclass(frozen=True)
class PreparedLayer:
    """A layer of an edit with its added blocks, which are made but not yet put in place.

    Attributes:
        change: The layer's change.
        split: The split layer that it is or becomes, without the added blocks.
        composition: All its blocks, and where its channels lie after the edit.
        sources: For each output after the edit the output that it equals if new units are copies of
            the old ones in turn.
        led: The tensors with which its helper reads units that another layer makes, and that has
            their values.
        writable: Whether the values of existing blocks may change.
    """

    change: LayerChange
    split: SplitLayer
    composition: Composition
    sources: tuple[int, ...] = ()
    led: frozenset[str] = frozenset()
    writable: bool = False

    @property
    def name(self) -> str:
        """The layer's module path."""
        return self.change.name

    @property
    def layer_type(self) -> LayerType:
        """The entry for the layer's type."""
        return self.composition.layer_type

    @property
    def tensors(self) -> Mapping[str, TensorAxes]:
        """The names of the plain layer's tensors, and which dimensions run along channels."""
        return self.layer_type.tensors(self.original)

    def reading_dim(self, key: str) -> int | None:
        """The dimension of a tensor that has the weights for the units that the layer reads.

        None if it has none. A layer in which each unit reads only itself has no such weights.
        """
        if self.layer_type.diagonal(self.original):
            return None
        dims = (dim for dim, along in self.tensors[key].items() if along.reads)
        return next(dims, None)

    @property
    def original(self) -> nn.Module:
        """The layer as it was before its first growth."""
        return self.composition.original

    @property
    def existing(self) -> tuple[Any, ...]:
        """The blocks that the layer has, the original first."""
        return self.composition.modules[: -len(self.change.blocks)]

    @property
    def added(self) -> dict[str, Any]:
        """The blocks that the edit adds, by their role: "helper", "new"."""
        blocks = self.change.blocks
        return dict(zip(blocks, self.composition.modules[-len(blocks) :], strict=True))

    def starts(self, block: str) -> list[Start]:
        """The values until they learn of the channels that a block adds.

        For a helper these are the channels that it reads, otherwise those that it makes.
        """
        return self.starts_on("in" if block == "helper" else "out")

    def starts_on(self, side: str) -> list[Start]:
        """The values until they learn of the channels that the edit adds on a side."""
        change = self.change
        insertions = change.ins if side == "in" else change.outs
        starts = change.start_ins if side == "in" else change.start_outs
        pairs = zip(insertions, starts, strict=True)
        return [Start(value) for (_, count), value in pairs for _ in range(count)]

    def value(self, key: str) -> Tensor | None:
        """One of the tensors of the plain layer that this one becomes, as a separate tensor."""
        return self.composition.value(key)

    def fill_(self, key: str, whole: Tensor) -> None:
        """Gives blocks their parts of one of the plain layer's tensors.

        Existing blocks get theirs only if the initializer declares `needs_unfrozen`; otherwise they
        keep their values.

        Args:
            key: The tensor's name.
            whole: Its values, as `value` returns them.

        Raises:
            UnsupportedLayerError: If a parametrization computes it and cannot be inverted.
        """
        merging = self.layer_type.merging
        for index, block in enumerate(self.composition.modules):
            if index < len(self.existing) and not self.writable:
                continue
            if getattr(block, key, None) is None:
                continue
            part = getattr(block, key) if merging.computes_weight else merging.value(block, key)
            assert part is not None, f"{type(block).__name__} has no {key}"
            back = self.composition.carry(index).inverse
            computed = key in computed_names(block)
            part = part.detach().clone() if computed else part.detach()
            for there, own in regions(self.composition.places(index, key), part.dim()):
                value = whole[there]
                value = value if back == UNCHANGED else merging.carried_over(key, value, back)
                part[own] = value
            if computed:
                _set_computed_(self.name, block, key, part)


def _set_computed_(name: str, block: nn.Module, key: str, value: Tensor) -> None:
    """Sets a tensor that is computed, by the values from which torch computes it.

    Raises:
        UnsupportedLayerError: If it finds none.
    """
    try:
        setattr(block, key, value)
    except Exception as error:  # what a parametrization's right_inverse raises
        raise UnsupportedLayerError(
            f"the parametrization of `{name}.{key}` takes no new values by its right_inverse "
            f"({type(error).__name__}: {error}); choose an initializer that leaves existing values "
            f"as they are"
        ) from error


@dataclass(frozen=True)
class PreparedEdit:
    """An edit with its added blocks, made but not yet put in place: the input of an initializer.

    Attributes:
        model: The model, which has not changed yet.
        edit: The record of the edit.
        graph: The model's channel graph as it will be.
        layers: The layers that change, by name, in order of execution.
        generator: The generator to draw random numbers with; None for torch's own generators, which
            a failed edit restores.
        loss: A closure that returns a loss; None if there is none.
        held_out: The initializer's own, on data that `loss` does not see; None if it has none.
        former: The existing tensors that an initializer has changed, with their values from before.
        losses: The loss before and after, if an initializer that is not exact was given one.
    """

    model: nn.Module
    edit: Edit
    graph: ChannelGraph
    layers: Mapping[str, PreparedLayer]
    generator: torch.Generator | None = None
    loss: Callable[[], Tensor] | None = None
    held_out: Callable[[], Tensor] | None = None
    former: tuple[tuple[Tensor, Tensor], ...] = ()
    losses: tuple[float, float] | None = None

    def places(self, layer: str) -> dict[str, dict[int, tuple[Place, ...]]]:
        """The units along the dimensions of a layer's tensors, after the edit, by tensors' names.

        A unit is the same in all layers that make or read it, so a choice for a unit holds for all
        of them.
        """
        original = self.layers[layer].original
        ins, outs = layer_places(self.graph.groups, self.graph.nodes[layer], original)
        return along_tensors(original, ins, outs)

    @property
    def frozen(self) -> frozenset[str]:
        """The layers whose existing values are frozen, or will be when the edit is placed."""
        return frozen_layers(self.edit, {name: each.split for name, each in self.layers.items()})

    @cached_property
    def hidden(self) -> dict[int, tuple[Unit, ...]]:
        """Those of the units that may have any values, and that a layer makes and another reads."""
        originals = {name: layer.original for name, layer in self.layers.items()}
        groups = hidden_groups(self.edit, self.graph, originals)
        return {group: units for group, units in self.units.items() if group in groups}

    def hidden_on(self, layer: str) -> dict[str, list[bool]]:
        """Of the channels that the edit adds on each side of a layer, those that are hidden units.

        They are in the order of `PreparedLayer.starts_on`.
        """
        node, hidden, growth = self.graph.nodes.get(layer), self.hidden, self.edit.growth
        sides: dict[Literal["in", "out"], Axis] = {"in": (), "out": ()}
        if node is not None:
            sides = {"in": node.ins, "out": node.outs}
        return {
            side: [
                run.group in hidden
                for run in self.graph.groups.resolve(axis)
                for _ in range(
                    run.repeat * growth.get(run.group, 0) if run.group is not None else 0
                )
            ]
            for side, axis in sides.items()
        }

    @property
    def units(self) -> dict[int, tuple[Unit, ...]]:
        """The units that the edit adds, by the number of their group."""
        widths = {group: self.graph.groups.width(group) for group in self.edit.growth}
        return {
            group: tuple(Unit(group, n) for n in range(widths[group] - count, widths[group]))
            for group, count in self.edit.growth.items()
        }


def frozen_layers(edit: Edit, layers: Mapping[str, SplitLayer]) -> frozenset[str]:
    """The layers whose existing values are frozen, or will be when an edit is placed.

    Args:
        edit: The edit.
        layers: The layers that it changes, without its blocks, by name.
    """
    if edit.closes is not None:
        return frozenset(layers)
    return frozenset(name for name, split in layers.items() if _is_frozen(split))


def _is_frozen(split: SplitLayer) -> bool:
    return any(map(held, (split, *split))) or not all(
        parameter.requires_grad for block in split for parameter in block.parameters()
    )


def prepare(
    model: nn.Module, modules: Mapping[str, nn.Module], edit: Edit, graph: ChannelGraph
) -> PreparedEdit:
    """Makes the blocks of an edit, with torch's own random values; puts nothing in place yet.

    Args:
        model: The model.
        modules: Its modules by path.
        edit: The edit.
        graph: The model's channel graph as it is.
    """
    with torch.inference_mode(mode=False):  # blocks made there could never train
        layers = {each.name: prepare_layer(modules, edit.index, each) for each in edit.changes}
    grown = replace(graph, groups=graph.groups.grown(edit.growth))
    led = tie_blocks_({name: layer.composition for name, layer in layers.items()})
    layers = {
        name: replace(
            layer, sources=_sources(grown, layer, edit.growth), led=led.get(name, frozenset())
        )
        for name, layer in layers.items()
    }
    return PreparedEdit(model, edit, grown, layers)


def _sources(
    grown: ChannelGraph, layer: PreparedLayer, growth: Mapping[int, int]
) -> tuple[int, ...]:
    """For each output of a layer the old one that is before it, or in whose turn it comes."""
    before, after = layer.change.width
    node = grown.nodes.get(layer.name)
    if node is None or grown.groups.length(node.outs) != after:
        return tuple(n % before for n in range(after))  # scores of experts, which are no channels
    found: list[int] = []
    for run in grown.groups.resolve(node.outs):
        start, length = len(found), grown.groups.length((run,))
        gained = growth.get(run.group, 0) * run.repeat if run.group is not None else 0
        old = length - gained
        found += [start + n % old for n in range(length)]
    return tuple(found)


def prepare_layer(
    modules: Mapping[str, nn.Module], edit: int, change: LayerChange, device: str | None = None
) -> PreparedLayer:
    """Makes the blocks of a layer's change.

    Args:
        modules: The model's modules by path.
        edit: The number of the edit.
        change: The layer's change.
        device: The device of the blocks: "meta" for blocks without values; None for the layer's
            own.
    """
    module = layer_at(modules, change.name, change.use)
    split = split_of(module)
    if split is not module:
        # A held norm is in evaluation mode even while the model trains; a new block must not be.
        parent = modules[change.name.rpartition(".")[0]]
        split.training = parent.training if held(module) else module.training
    before = (change.in_width[0], change.width[0])
    gain = (change.in_width[1] - before[0], change.width[1] - before[1])
    blocks, purposes = list(split), list(split.blocks)
    options = {} if device is None else {"device": device}
    last = change.blocks[0] == "new" and len(change.blocks) > 1
    planned = planned_blocks(split.layer_type, split.original, before, gain, helper_last=last)
    for kind, sizes in planned.items():
        block = build_block(split.layer_type, split.original, kind, sizes, **options)
        if device is None:
            _match_memory_format(block, split.original)
        blocks.append(block.train(split.training))
        new = kind != "helper"
        join = Join(change.join) if new else Join.APART
        purposes.append(Block("new" if new else "helper", edit, join, corner=new is not last))
    layouts = split.ins.inserted(change.ins, edit), split.outs.inserted(change.outs, edit)
    return PreparedLayer(change, split, Composition((*blocks,), (*purposes,), *layouts))


def _match_memory_format(block: nn.Module, original: nn.Module) -> None:
    """Keeps a channels-last model channels-last."""
    weight = getattr(original, "weight", None)
    if weight is not None and not weight.is_contiguous():
        block.to(memory_format=memory_format_of(weight))  # type: ignore[call-overload]
