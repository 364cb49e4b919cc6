"""The role of a block in a grown layer: which channels it reads, and which it makes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from splitgrow.layers.channel_layout import Layout, Piece
from splitgrow.layers.joins import is_behind
from splitgrow.layers.types.start_values import Join
from splitgrow.utils.spans import Spans

BlockKind = Literal["original", "new", "helper"]


@dataclass(frozen=True, slots=True)
class Block:
    """The role of one stock layer inside a split layer.

    Attributes:
        kind: "original"; "new" for added outputs, which are inserted into the output; "helper" for
            added inputs, whose result is added onto the outputs that existed.
        edit: The number of the edit that made it; 0 for the original.
        join: How its outputs joined in the statistic that all share, if there is one.
        corner: Whether it has what its edit's new outputs read of its new inputs: a new block reads
            both old and new inputs, unless the edit's helper adds onto both old and new outputs.
    """

    kind: BlockKind
    edit: int
    join: Join = Join.APART
    corner: bool = True

    def reads(self, birth: int) -> bool:
        """Whether it reads the inputs that were born in an edit, if it mixes inputs."""
        if self.kind == "helper":
            return birth == self.edit
        return birth <= self.edit if self.corner else birth < self.edit

    def read_on(self, layout: Layout) -> Spans:
        """The positions on an axis of inputs that it `reads`."""
        if torch.compiler.is_compiling():
            return layout.spans(self.reads)
        if self.kind == "helper":
            return layout.born_in(self.edit)
        return layout.born_until(self.edit if self.corner else self.edit - 1)

    def made_on(self, layout: Layout) -> Spans:
        """The positions on an axis of outputs that it `makes`."""
        if torch.compiler.is_compiling():
            return layout.spans(self.makes)
        if self.kind == "helper":
            return layout.born_until(self.edit if self.corner else self.edit - 1)
        return layout.born_in(self.edit)

    def turns_on(self, layout: Layout) -> tuple[Piece, ...]:
        """How the channels of its edit take turns with older ones."""
        compiling = torch.compiler.is_compiling()
        return layout.pieces(self.edit) if compiling else layout.turns(self.edit)

    def joins_on(self, layout: Layout) -> tuple[Piece, ...]:
        """As `turns_on`; none if the channels of its edit are behind all older ones."""
        if torch.compiler.is_compiling():
            pieces = layout.pieces(self.edit)
            return () if is_behind(pieces) else pieces
        return () if layout.is_behind(self.edit) else layout.turns(self.edit)

    def makes(self, birth: int) -> bool:
        """Whether it adds to, or makes, the outputs that were born in an edit."""
        if self.kind == "helper":
            return birth <= self.edit if self.corner else birth < self.edit
        return birth == self.edit
