"""Running a grown layer block by block: every block on its inputs, the results joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from splitgrow.layers.channel_layout import Piece
from splitgrow.layers.composition import Composition
from splitgrow.layers.joins import arranged
from splitgrow.utils.spans import Spans, part_of


class BlockStep(NamedTuple):
    """How one block takes part in a forward pass."""

    reads: Spans  # the stretches of the input; empty: all of it
    pieces: tuple[Piece, ...]  # how its output joins the earlier one; empty: it is added


class Blockwise:
    """The steps of a grown layer, in the order of its blocks' birth.

    A helper's output is added onto the outputs that existed at its birth; a new block's output is
    inserted among them. So leaving out the later blocks gives the layer's earlier output, bit for
    bit.
    """

    def __init__(self, composition: Composition) -> None:
        entry, original = composition.layer_type, composition.original
        self._dim = entry.channel_dim(original)
        self._looks_up = entry.looks_up
        steps = []
        for block in composition.blocks:
            own = block.made_on if entry.diagonal(original) else block.read_on
            reads = own(composition.ins)
            everything = reads == ((0, composition.ins.length),)
            pieces = block.turns_on(composition.outs) if block.kind == "new" else ()
            steps.append(BlockStep(() if everything else reads, pieces))
        self.steps = tuple(steps)

    def run(self, modules: Sequence[nn.Module], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The output of all blocks together.

        Args:
            modules: The blocks.
            x: The layer's first input.
            args: Further positional arguments, for every block.
            kwargs: Further keyword arguments.
        """
        return run_apart(self.steps, self._dim, modules, x, args, kwargs, self._looks_up)


def run_apart(
    steps: Sequence[BlockStep],
    dim: int,
    modules: Sequence[nn.Module],
    x: Tensor,
    args: Any = (),
    kwargs: Any = None,
    looks_up: bool = False,  # noqa: FBT001, FBT002
) -> Tensor:
    """The output of all blocks together, by steps that torch's compiler takes for constants."""
    y: Tensor | None = None
    for block, step in zip(modules, steps, strict=True):
        if step.reads and looks_up:
            part = _looked_up(block, x, step.reads)
        else:
            read = part_of(x, dim, step.reads) if step.reads else x
            part = block(read, *args, **(kwargs or {}))
        if step.pieces and y is not None:
            part = arranged(y, part, step.pieces, dim)
        y = part if step.pieces or y is None else y + part
    assert y is not None
    return y


def _looked_up(block: nn.Module, x: Tensor, rows: Spans) -> Tensor:
    """What a block has of some rows of a table; zeros where others are looked up.

    Args:
        block: The block, which has the rows one behind the other.
        x: The rows that are looked up.
        rows: The rows that the block has.
    """
    local, known, before = torch.zeros_like(x), torch.zeros_like(x, dtype=torch.bool), 0
    for start, length in rows:
        here = (x >= start) & (x < start + length)
        local, known = torch.where(here, x - start + before, local), known | here
        before += length
    found: Tensor = block(local)
    return found * known.unsqueeze(-1).to(found.dtype)
