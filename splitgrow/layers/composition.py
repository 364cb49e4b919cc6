"""The blocks of a grown layer, and how their tensors make those of one plain layer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.errors import StructureChangedError
from splitgrow.layers.block_roles import Block
from splitgrow.layers.channel_layout import Layout
from splitgrow.layers.joins import JoinStep, joined_parts
from splitgrow.layers.types import Along, LayerType, Merging, known_layer_type
from splitgrow.layers.types.start_values import UNCHANGED, Carry, Join, Joined
from splitgrow.layers.weight_views import is_dense, room_for
from splitgrow.utils.spans import Spans, length_of, regions

_WAY_OUT = "change blocks by growth only, or make the model plain first, with splitgrow.merge"


@dataclass(frozen=True)
class Composition:
    """The blocks of a grown layer, and where their channels lie.

    Attributes:
        modules: The blocks, the original first.
        blocks: The role of each.
        ins: Where the input channels came from.
        outs: Where the output channels came from.
        original: The layer as it was before its first growth.
        sizes: The numbers of input and output channels.
        layer_type: The entry for the type of its blocks.

    Args:
        known: That entry, where it is at hand: compiled code would be made anew with each type of
            which an entry is looked up.
    """

    modules: tuple[nn.Module, ...]
    blocks: tuple[Block, ...]
    ins: Layout
    outs: Layout
    original: nn.Module = field(init=False, compare=False)
    sizes: tuple[int, int] = field(init=False, compare=False)
    layer_type: LayerType = field(init=False, compare=False)
    known: InitVar[LayerType | None] = None

    def __post_init__(self, known: LayerType | None) -> None:
        original, sizes = self.modules[0], (self.ins.length, self.outs.length)
        layer_type = known or known_layer_type(original)
        vars(self).update(original=original, sizes=sizes, layer_type=layer_type)
        for module in () if known else self.modules:
            if type(module) is not type(self.original):
                known_layer_type(module)
        if len(self.modules) != len(self.blocks):
            raise StructureChangedError(
                f"a {type(self.original).__name__} that splitgrow has grown has "
                f"{len(self.modules)} blocks in place of {len(self.blocks)}; {_WAY_OUT}"
            )

    def has(
        self, modules: Sequence[nn.Module], blocks: Sequence[Block], ins: Layout, outs: Layout
    ) -> bool:
        """Whether it is of these very parts, and their types are still known."""
        same = self.blocks is blocks and self.ins is ins and self.outs is outs
        if not same or self.modules != modules or self._types != {*map(type, modules)}:
            return False
        return self.layer_type is known_layer_type(self.original)

    @cached_property
    def _types(self) -> set[type[nn.Module]]:
        return {*map(type, self.modules)}

    @property
    def merging(self) -> Merging:
        """How its blocks make one plain layer."""
        return self.layer_type.merging

    @cached_property
    def template(self) -> nn.Module:
        """The plain layer that it equals, without values."""
        return self.room()

    def room(self) -> nn.Module:
        """A plain layer like the one that it equals, without values."""
        return self.merging.merged(self.original, self.sizes, self.carry(0), device="meta")

    def carry(self, index: int) -> Carry:
        """The factors for the tensors of a block, once the later ones have joined."""
        return self._carries[index]

    @cached_property
    def _carries(self) -> tuple[Carry, ...]:
        """The factors for each block."""
        joined = [
            (
                index,
                Joined(
                    block.join,
                    self.outs.until(block.edit - 1).length,
                    self.outs.until(block.edit).length,
                ),
            )
            for index, block in enumerate(self.blocks)
            if block.join is not Join.APART
        ]
        if not joined:
            return (UNCHANGED,) * len(self.blocks)
        later = ([one for at, one in joined if at > index] for index in range(len(self.blocks)))
        return tuple(self.merging.carry(each) if each else UNCHANGED for each in later)

    @cached_property
    def _carries_over(self) -> bool:
        """Whether tensors of some block are adjusted to the channels that have joined since."""
        return self._carries.count(UNCHANGED) < len(self._carries)

    @cached_property
    def _kept(self) -> frozenset[str]:
        """The numbers that each block has for itself and reads."""
        return self.layer_type.kept(self.original) - {"num_batches_tracked"}

    @property
    def names(self) -> list[str]:
        """The plain layer's tensors that run along its channels."""
        known = self.layer_type.tensors(self.original)
        return [name for name in _tensors_of(self.template) if name in known]

    def until(self, edit: int) -> Composition:
        """The layer as it was after an edit."""
        seen = [index for index, block in enumerate(self.blocks) if block.edit <= edit]
        return Composition(
            tuple(self.modules[index] for index in seen),
            tuple(self.blocks[index] for index in seen),
            self.ins.until(edit),
            self.outs.until(edit),
            self.layer_type,
        )

    def dense(self) -> Composition:
        """The same layer with every tensor in its own storage."""
        modules = tuple(_dense(module) for module in self.modules)
        return Composition(modules, self.blocks, self.ins, self.outs, self.layer_type)

    def layout(self, along: Along) -> Layout:
        """Where the channels along a dimension of the plain layer's tensors came from."""
        side = self.ins if along.side == "in" else self.outs
        return side.section(along.sections).repeated(along.copies)

    def spans(self, index: int, along: Along) -> Spans:
        """The positions of a block on a dimension of the plain layer's tensors."""
        block, layout = self.blocks[index], self.layout(along)
        if not along.reads or self.layer_type.diagonal(self.original):
            return block.made_on(layout)
        return block.read_on(layout)

    def places(self, index: int, name: str) -> Mapping[int, Spans]:
        """Where a block's tensor lies in the plain layer's, by dimension."""
        axes = self.layer_type.tensors(self.original)[name]
        return {dim: self.spans(index, along) for dim, along in axes.items()}

    def all_places(self, name: str) -> list[Mapping[int, Spans]]:
        """Where every block's tensor lies in the plain layer's, by dimension."""
        axes = self.layer_type.tensors(self.original)[name]
        diagonal = self.layer_type.diagonal(self.original)
        sides = [(d, self.layout(a), a.reads and not diagonal) for d, a in axes.items()]
        return [
            {d: b.read_on(layout) if reads else b.made_on(layout) for d, layout, reads in sides}
            for b in self.blocks
        ]

    def lengths(self, name: str) -> Mapping[int, list[int]]:
        """The lengths that every block's tensor must have, by dimension."""
        if name not in self._known_lengths:
            self._known_lengths[name] = self._measured(name, 0)
        return self._known_lengths[name]

    def _measured(self, name: str, start: int) -> dict[int, list[int]]:
        axes = self.layer_type.tensors(self.original)[name]
        diagonal = self.layer_type.diagonal(self.original)
        found = {}
        for dim, along in axes.items():
            layout, reads = self.layout(along), along.reads and not diagonal
            blocks = self.blocks[start:]
            spans = [b.read_on(layout) if reads else b.made_on(layout) for b in blocks]
            found[dim] = [length_of(each) for each in spans]
        return found

    @cached_property
    def _known_lengths(self) -> dict[str, dict[int, list[int]]]:
        return {}

    def learn_(self, before: Composition) -> bool:
        """Takes over all that is known of its first blocks from the composition of these alone.

        Returns:
            Whether it has those blocks, and its other channels are behind theirs.
        """
        count = len(before.modules)
        same = self.modules[:count] == before.modules and self.blocks[:count] == before.blocks
        if not same or self.layer_type is not before.layer_type:
            return False
        for layout, old in ((self.ins, before.ins), (self.outs, before.outs)):
            if layout.segments[: len(old.segments)] != old.segments:
                return False
        for name, lengths in before._known_lengths.items():
            more = self._measured(name, count)
            self._known_lengths[name] = {dim: own + more[dim] for dim, own in lengths.items()}
        return True

    def scattered(self, index: int, name: str) -> bool:
        """Whether a block's tensor lies in several pieces in the plain layer's."""
        return any(len(spans) > 1 for spans in self.places(index, name).values())

    def shape(self, name: str) -> list[int]:
        """The shape of one of the plain layer's tensors."""
        first = self.merging.value(self.original, name)
        assert first is not None
        shape = list(first.shape)
        for dim, along in self.layer_type.tensors(self.original)[name].items():
            shape[dim] = along.length(self.sizes)
        return shape

    def parts(self, name: str) -> list[tuple[int, Tensor]]:
        """The blocks that have a part of one of the plain layer's tensors, and their parts."""
        if not torch.compiler.is_compiling() and self.merging.reads_stores:
            stores: list[Any] = [module._parameters for module in self.modules]  # noqa: SLF001
            if all([name in store for store in stores]):  # noqa: C419 - faster
                values = [(n, store[name]) for n, store in enumerate(stores)]
                return [part for part in values if part[1] is not None]
        found = ((n, self.merging.value(module, name)) for n, module in enumerate(self.modules))
        return [(index, value) for index, value in found if value is not None]

    def value(self, name: str) -> Tensor | None:
        """One of the tensors of the plain layer that equals this one, as a separate tensor.

        It is not differentiable. None if the layer has none of that name.
        """
        first = self.merging.value(self.original, name)
        if first is None:
            return None
        whole, places = room_for(first, self.shape(name)), self.all_places(name)
        for index, part in self.parts(name):
            part = self._carried_over(name, part.detach(), index)
            for there, own in regions(places[index], part.dim()):
                whole[there] = part[own]
        return whole

    def assembled(self, name: str) -> Tensor | None:
        """One of the tensors of the plain layer, differentiable by the blocks' own tensors.

        It is a plain concatenation, which every transform of torch supports.
        """
        parts = self.parts(name)
        if not parts or parts[0][0]:
            return None
        having = [index for index, _ in parts]
        if torch.compiler.is_compiling() or self._carries_over:
            tensors = [self._carried_over(name, part, index) for index, part in parts]
        else:
            tensors = [part for _, part in parts]
        return joined_parts(tensors, self.joins(name, having))

    def joins(self, name: str, having: Sequence[int]) -> tuple[JoinStep, ...]:
        """How the parts of one of the plain layer's tensors are joined, one block after the other.

        Args:
            name: The tensor's name.
            having: The blocks that have a part of it, in order.
        """
        if torch.compiler.is_compiling():
            return self._joins(name, having)
        known = self._known_joins.get(name)
        if known is None or known[0] != having:
            known = self._known_joins[name] = list(having), self._joins(name, having)
        return known[1]

    @cached_property
    def _known_joins(self) -> dict[str, tuple[list[int], tuple[JoinStep, ...]]]:
        return {}

    def _joins(self, name: str, having: Sequence[int]) -> tuple[JoinStep, ...]:
        axes = self.layer_type.tensors(self.original)[name]
        helps = [self.blocks[index].kind == "helper" for index in having[1:]]
        if len({*helps}) == 1 and not torch.compiler.is_compiling():
            dim, along = _growing_dim(axes, reads=helps[0])
            if self.layout(along).all_behind([self.blocks[n].edit for n in having[1:]]):
                return (JoinStep(dim, len(helps)),)
        sides = {reads: _growing_dim(axes, reads=reads) for reads in {*helps}}
        layouts = {reads: (dim, self.layout(along)) for reads, (dim, along) in sides.items()}
        steps: list[JoinStep] = []
        for index, helps_old in zip(having[1:], helps, strict=True):
            block = self.blocks[index]
            dim, layout = layouts[helps_old]
            pieces = block.joins_on(layout)
            last = steps[-1] if steps else None
            if pieces:
                steps.append(JoinStep(dim, 1, pieces))
            elif last is not None and last.dim == dim and not last.pieces:
                steps[-1] = JoinStep(dim, last.added + 1)  # those at the end are joined in one step
            else:
                steps.append(JoinStep(dim, 1))
        return tuple(steps)

    def _carried_over(self, name: str, tensor: Tensor, index: int) -> Tensor:
        carry = self.carry(index)
        return tensor if carry == UNCHANGED else self.merging.carried_over(name, tensor, carry)

    def plain(self) -> nn.Module:
        """A stock layer that computes the same, with tensors of its own.

        Where it has not grown it is a copy of the original, with all that computes its tensors.
        """
        if len(self.modules) == 1 and self.merging.computes_weight:
            return copy.deepcopy(self.original)
        plain = self.room()
        latest = self.modules[-1]
        for name, tensor in (*plain.named_parameters(), *plain.named_buffers()):
            if name in self.layer_type.tensors(self.original):
                value = self.value(name)
            else:  # a counter, such as a batch norm's num_batches_tracked
                value = getattr(latest, name).detach().clone()
            assert value is not None, f"the plain layer has a tensor `{name}`, the blocks do not"
            setattr(plain, name, nn.Parameter(value) if isinstance(tensor, nn.Parameter) else value)
        return plain

    def holding(self, tensors: Mapping[str, Tensor | None], *, training: bool) -> nn.Module:
        """A plain layer with these tensors, which are not copied."""
        plain: nn.Module = object.__new__(type(self.template))
        plain.__dict__.update(vars(self.template))
        plain.__dict__["training"] = training
        plain.__dict__["_parameters"] = {
            name: tensors.get(name) for name in _tensors_of(self.template) if name not in self._kept
        }
        plain.__dict__["_buffers"] = {
            name: tensor
            for name, tensor in vars(self.original)["_buffers"].items()
            if name in self._kept
        }
        return self.merging.given(plain)


def _tensors_of(module: nn.Module) -> dict[str, Tensor | None]:
    return {**module._parameters, **module._buffers}  # noqa: SLF001


def _dense(module: nn.Module) -> nn.Module:
    """A stand-in for a module whose parameters are parts of larger tensors."""
    if all(is_dense(p) for p in module.parameters(recurse=False)):
        return module
    twin: nn.Module = object.__new__(type(module))
    twin.__dict__.update(vars(module))
    twin.__dict__["_parameters"] = {
        # Torch picks some kernels by whether a weight requires a gradient.
        name: p if p is None or is_dense(p) else p.detach().clone().requires_grad_(p.requires_grad)
        for name, p in module._parameters.items()  # noqa: SLF001
    }
    return twin


def _growing_dim(axes: Any, *, reads: bool) -> tuple[int, Along]:
    """The dimension along which a block's tensor joins the others."""
    for dim, along in axes.items():
        if along.reads == reads:
            return dim, along
    # A diagonal layer's tensor may run along its inputs only, one for each group of outputs.
    (item,) = axes.items()
    return item  # type: ignore[no-any-return]
