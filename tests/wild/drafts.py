"""A program's source in progress: one piece is written after the other, and run at once."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

HEADER = """\
import copy, functools, math, operator

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from wild.extras import opinfo
"""
BATCH = 3
"""Rows of the example inputs."""


@dataclass(frozen=True)
class Argument:
    """An argument of forward: its sizes without the batch, and one more than its largest index.

    Attributes:
        name: Its name.
        sizes: Its sizes without the batch; None for a plain vector or number of no batch.
        indices: Of integers, one more than the largest; 0 for floats.
    """

    name: str
    sizes: tuple[int, ...]
    indices: int = 0


@dataclass
class Draft:
    """What has been written so far of a program, and what is known of ``h``, its current tensor.

    Attributes:
        rng: Decides all that is left open.
        shape: The sizes of ``h``.
        channel: The dimension of ``h`` that holds the units of the last layer.
        coarse: How far rounding may go beyond that of float64.
    """

    rng: random.Random
    arguments: list[Argument] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    init: list[str] = field(default_factory=list)
    methods: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    channel: int = 1
    coarse: float = 0.0
    names: int = 0

    def fresh(self, letter: str) -> str:
        """A name that nothing has yet."""
        self.names += 1
        return f"{letter}{self.names}"

    def add(self, where: list[str], text: str) -> None:
        """Adds lines to a part of the source."""
        where.extend(textwrap.dedent(text).strip("\n").split("\n"))

    def argument(self, sizes: tuple[int, ...], indices: int = 0) -> str:
        """The name of a new argument of forward."""
        name = self.fresh("x")
        self.arguments.append(Argument(name, sizes, indices))
        return name

    @contextmanager
    def block(self, head: str, tail: str = "") -> Iterator[None]:
        """Has what is written meanwhile stand inside a statement."""
        start = len(self.body)
        yield
        lines = self.body[start:] or ["pass"]
        self.body[start:] = [head, *(f"    {line}" for line in lines), *tail.splitlines()]

    @property
    def width(self) -> int:
        """The number of units on the channel axis."""
        return self.shape[self.channel]

    @property
    def dims(self) -> int:
        """The number of dimensions of ``h``."""
        return len(self.shape)

    def others(self) -> list[int]:
        """The dimensions that are neither the batch nor the channels."""
        return [dim for dim in range(1, self.dims) if dim != self.channel]

    def spelled(self, dim: int) -> str:
        """A dimension counted from the front or from the back."""
        return str(dim if self.rng.random() < 0.6 else dim - self.dims)

    def facts(self) -> set[str]:
        """What pieces may ask for in their `when`."""
        found = {f"{self.dims}d"}
        if self.channel == 1 and self.dims > 2:
            found.add("ch1")
        if self.channel == self.dims - 1:
            found.add("last")
        if self.others():
            found.add("space")
        if all(self.shape[dim] > 1 for dim in self.others()):
            found.add("wide")
        if self.width % 2 == 0:
            found.add("even")
        if self.width % 4 == 0:
            found.add("fourfold")
        return found

    def meets(self, when: str) -> bool:
        """Whether all words of a condition hold; ``a|b`` holds if one of them does."""
        facts = self.facts()
        return all(facts & set(word.split("|")) for word in when.split())

    def source(self, result: str = "return h") -> str:
        """The program as it stands."""
        arguments = ", ".join(argument.name for argument in self.arguments)
        lines = [HEADER, *self.setup, "", "class Program(nn.Module):"]
        lines += ["    def __init__(self):", "        super().__init__()"]
        lines += [f"        {line}" for line in self.init]
        lines += ["", *(f"    {line}" if line else "" for line in self.methods)]
        lines += ["", f"    def forward(self, {arguments}):"]
        lines += [f"        {line}" for line in [*self.body, *result.splitlines()]]
        return "\n".join(lines) + "\n"

    def state(self) -> dict[str, Any]:
        """What `restore` needs to forget a piece again."""
        own = vars(self)
        return {name: list(own[name]) if type(own[name]) is list else own[name] for name in own}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to an earlier state."""
        vars(self).update(state)


@dataclass(frozen=True)
class Piece:
    """Something that a forward does to ``h``.

    Attributes:
        family: What it is a kind of; families are drawn first, then a piece.
        name: What it is called in summaries.
        write: Writes it into a draft.
        when: What must be true of ``h``; see `Draft.facts`.
    """

    family: str
    name: str
    write: Callable[[Draft], None]
    when: str = ""


FAMILIES: dict[str, list[Piece]] = {}
"""All pieces, by family, in the order in which they were registered."""


def register(piece: Piece) -> None:
    """Has a piece drawn from now on."""
    FAMILIES.setdefault(piece.family, []).append(piece)
