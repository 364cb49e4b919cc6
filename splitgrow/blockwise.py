"""Running a grown layer block by block: every block on its inputs, the results joined."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from splitgrow.composition import Composition, arranged
from splitgrow.layouts import Piece
from splitgrow.spans import Spans, take


class Step(NamedTuple):
    """How one block takes part in a forward pass."""

    reads: Spans
    pieces: tuple[Piece, ...]  # how its output joins what is there; empty: it is added onto it


def steps_of(composition: Composition) -> tuple[Step, ...]:
    """The steps of a grown layer, in the order of its blocks.

    Blocks run in the order of their birth. A helper's output is added onto the outputs that existed
    at its birth; a new block's output is inserted among them. So leaving out the later blocks gives
    what the layer computed before them, bit for bit.
    """
    own_inputs_only = composition.kind.diagonal(composition.original)
    steps = []
    for kind, edit in ((block.kind, block.edit) for block in composition.blocks):
        own = kind == "helper" or own_inputs_only
        reads = composition.ins.spans(edit.__eq__ if own else edit.__ge__)
        steps.append(Step(reads, composition.outs.pieces(edit) if kind == "new" else ()))
    return tuple(steps)


def run(
    composition: Composition, steps: tuple[Step, ...], x: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """The output of all blocks together."""
    kind, original = composition.kind, composition.original
    dim = kind.channel_dim(original)
    y: Tensor | None = None
    for block, step in zip(composition.modules, steps, strict=True):
        read = take(x, dim, step.reads) if kind.reads_channels and step.reads else x
        part: Tensor = block(read, *args, **kwargs)
        if step.pieces and y is not None:
            part = arranged(y, part, step.pieces, dim)
        y = part if step.pieces or y is None else y + part
    assert y is not None
    return y
