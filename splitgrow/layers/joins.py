"""How the parts of a tensor are joined: one behind the other, or in pieces that take turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from splitgrow.layers.channel_layout import Piece


class JoinStep(NamedTuple):
    """One concatenation of those that put a tensor together."""

    dim: int
    added: int  # parts
    pieces: tuple[Piece, ...] = ()  # how one part and those before it take turns; empty: behind


def joined_parts(parts: Sequence[Tensor], joins: Sequence[JoinStep]) -> Tensor:
    """The tensor that parts make together, differentiable by all of them."""
    whole, done = parts[0], 1
    for dim, added, pieces in joins:
        if pieces:
            whole = arranged(whole, parts[done], pieces, dim)
        else:
            whole = torch.cat((whole, *parts[done : done + added]), dim)
        done += added
    return whole


def arranged(old: Tensor, new: Tensor, pieces: tuple[Piece, ...], dim: int) -> Tensor:
    """Two tensors joined in pieces that take turns."""
    parts = (old, new)
    if is_behind(pieces):
        return torch.cat(parts, dim)
    return torch.cat([parts[p.new].narrow(dim, p.start, p.length) for p in pieces], dim)


def is_behind(pieces: tuple[Piece, ...]) -> bool:
    """Whether new positions are behind all old ones."""
    return len(pieces) == 2 and not pieces[0].new
