"""Split layers: a grown layer, held as its original block and what each edit added to it.

A split layer knows its own blocks and where their channels lie. It knows nothing of its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from splitgrow.kinds import Along, LayerKind, kind_of
from splitgrow.layouts import Layout, Piece

BlockKind = Literal["original", "new", "helper"]


@dataclass(frozen=True, slots=True)
class Block:
    """What one stock layer inside a split layer is for.

    Attributes:
        kind: "original"; "new" for added outputs, which are inserted into the output; "helper" for
            added inputs, whose result is added onto the outputs that existed.
        edit: The number of the edit that made it; 0 for the original.
    """

    kind: BlockKind
    edit: int


class _Step(NamedTuple):
    """How one block takes part in a forward pass."""

    block: int
    reads: tuple[tuple[int, int], ...]  # spans of the input; empty: all of it
    pieces: tuple[Piece, ...]  # how its output joins what is there; empty: it is added onto it


class SplitLayer(nn.ModuleList):
    """A grown layer: the original block first, then the blocks of every edit, all stock layers.

    Blocks run in the order of their birth. A helper's output is added onto the outputs that existed
    at its birth; a new block's output is inserted among them. So leaving out the later blocks gives
    what the layer computed before them, bit for bit.

    It answers for the attributes of a stock layer of its present size (``out_channels``,
    ``weight``, ``stride``), so code that only reads them goes on working.

    Attributes:
        blocks: What each of the stock layers is for, in the same order.
        ins: Where the input channels came from.
        outs: Where the output channels came from.
        view: The number of the last edit that is seen by `forward`; None for all.
    """

    def __init__(self, original: nn.Module) -> None:
        super().__init__([original])
        inputs, outputs = self.kind.sizes(original)
        self.blocks: tuple[Block, ...] = (Block("original", 0),)
        self.ins = Layout.original(inputs)
        self.outs = Layout.original(outputs)
        self.view: int | None = None
        self._schedules: dict[int | None, tuple[_Step, ...]] = {}

    @property
    def original(self) -> nn.Module:
        """The layer as it was before its first growth."""
        return self._modules["0"]

    @property
    def kind(self) -> LayerKind:
        """The entry for the type of its blocks."""
        kind = kind_of(self.original)
        assert kind is not None, type(self.original)
        return kind

    def set_blocks(self, modules: Sequence[nn.Module], blocks: Sequence[Block]) -> None:
        """Replaces all modules but the original, and what they are for."""
        kept = {"0": self.original}
        kept.update((str(index), module) for index, module in enumerate(modules[1:], 1))
        self._modules = kept  # in one step, so that an interruption finds all of them or the old
        self.blocks = tuple(blocks)
        self._schedules = {}

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The layer's output at its present size, or at that of the edit in `view`."""
        if self.kind.couples and len(self._seen(self.view)) > 1:
            return self._as_one(x, *args, **kwargs)
        if self.view not in self._schedules:
            self._schedules[self.view] = self._schedule(self.view)
        dim = self.kind.channel_dim(self.original)
        first, *others = self._schedules[self.view]
        y: Tensor = self[first.block](_select(x, first.reads, dim), *args, **kwargs)
        for step in others:
            part = self[step.block](_select(x, step.reads, dim), *args, **kwargs)
            y = _arranged(y, part, step.pieces, dim) if step.pieces else y + part
        return y

    def _as_one(self, *args: Any, **kwargs: Any) -> Tensor:
        """The output of the plain layer that has the blocks' tensors put together."""
        sizes = self.sizes(self.view)
        plain = self.kind.build_merged(self.original, sizes, device="meta").train(self.training)
        values = {name: self.assembled(name, self.view) for name in self.kind.tensors(plain)}
        tensors = {name: value for name, value in values.items() if value is not None}
        output: Tensor = functional_call(plain, tensors, args, kwargs)
        return output

    def _seen(self, view: int | None) -> list[int]:
        return [i for i, block in enumerate(self.blocks) if view is None or block.edit <= view]

    def _schedule(self, view: int | None) -> tuple[_Step, ...]:
        ins = self.ins if view is None else self.ins.until(view)
        own_inputs_only = self.kind.diagonal(self.original)
        steps = []
        for index in self._seen(view):
            kind, edit = self.blocks[index].kind, self.blocks[index].edit
            if kind == "helper" or own_inputs_only:
                reads = ins.spans(edit.__eq__)
            else:
                reads = ins.spans(edit.__ge__)
            everything = ((0, ins.length),)
            pieces = self.outs.pieces(edit) if kind == "new" else ()
            steps.append(_Step(index, () if reads == everything else reads, pieces))
        return tuple(steps)

    def assembled(self, name: str, view: int | None = None) -> Tensor | None:
        """One of the tensors of the plain layer that equals this one.

        Args:
            name: The tensor's name in the stock layer: ``weight``, ``bias``, ``running_mean``.
            view: The number of the last edit to see; None for all.

        Returns:
            The tensor, differentiable with respect to the blocks' own; None if the layer has none.
        """
        axes = self.kind.tensors(self.original)[name]
        whole = self.kind.value(self.original, name)
        if whole is None:
            return None
        whole = self._carried_over(name, whole, 0, view)
        for index in self._seen(view)[1:]:
            part = self.kind.value(self[index], name)
            if part is not None:
                block = self.blocks[index]
                part = self._carried_over(name, part, block.edit, view)
                dim, along = _growing_dim(axes, "in" if block.kind == "helper" else "out")
                layout = (self.ins if along.side == "in" else self.outs).until(block.edit)
                pieces = layout.section(along.sections).pieces(block.edit)
                whole = _arranged(whole, part, pieces, dim)
        return whole

    def _carried_over(self, name: str, tensor: Tensor, edit: int, view: int | None) -> Tensor:
        born, now = self.outs.until(edit).length, self.sizes(view)[1]
        return tensor if born == now else self.kind.carried_over(name, tensor, born, now)

    def sizes(self, view: int | None = None) -> tuple[int, int]:
        """The numbers of input and output channels, now or after an edit."""
        if view is None:
            return self.ins.length, self.outs.length
        return self.ins.until(view).length, self.outs.until(view).length

    def plain(self, view: int | None = None) -> nn.Module:
        """A stock layer that computes the same, with tensors of its own."""
        plain = self.kind.build_merged(self.original, self.sizes(view), device="meta")
        latest = self[self._seen(view)[-1]]
        own = {id(tensor) for tensor in (*self.parameters(), *self.buffers())}
        for name, tensor in (*plain.named_parameters(), *plain.named_buffers()):
            if name in self.kind.tensors(self.original):
                value = self.assembled(name, view)
            else:  # a counter, such as a batch norm's num_batches_tracked
                value = getattr(latest, name)
            assert value is not None, f"the plain layer has a tensor `{name}`, the blocks do not"
            # What was put together is new already; what was taken over whole is not.
            value = value.detach().clone() if id(value) in own else value.detach()
            setattr(plain, name, nn.Parameter(value) if isinstance(tensor, nn.Parameter) else value)
        return plain.train(self.training)

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes over: not the view, which belongs to a ``with`` block."""
        return {**self.__dict__, "view": None, "_schedules": {}}

    def __getattr__(self, name: str) -> Any:
        """Answers for a stock layer of the present size.

        Raises:
            AttributeError: If a stock layer has no such attribute.
        """
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or "0" not in self.__dict__.get("_modules", {}):
                raise
        if name in self.kind.tensors(self.original):
            return self.assembled(name, self.view)
        value = getattr(self.original, name)
        if isinstance(value, int) and not isinstance(value, bool):
            # A width, a number of groups: as the plain layer of this size has it.
            return getattr(
                self.kind.build(self.original, self.sizes(self.view), device="meta"), name
            )
        return value


def stock(module: nn.Module) -> nn.Module:
    """The stock layer that stands for a module: a split layer's original, or the module."""
    return module.original if isinstance(module, SplitLayer) else module


def _growing_dim(axes: Any, side: str) -> tuple[int, Along]:
    """The dimension along which a block's tensor joins the others."""
    for dim, along in axes.items():
        if along.side == side:
            return dim, along
    # A diagonal layer's tensor may run along its inputs only, one for each group of outputs.
    (item,) = axes.items()
    return item  # type: ignore[no-any-return]


def _select(x: Tensor, spans: tuple[tuple[int, int], ...], dim: int) -> Tensor:
    if not spans:
        return x
    parts = [x.narrow(dim, start, length) for start, length in spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _arranged(old: Tensor, new: Tensor, pieces: tuple[Piece, ...], dim: int) -> Tensor:
    parts = (old, new)
    if len(pieces) == 2 and not pieces[0].new:
        return torch.cat(parts, dim)
    return torch.cat([parts[p.new].narrow(dim, p.start, p.length) for p in pieces], dim)
