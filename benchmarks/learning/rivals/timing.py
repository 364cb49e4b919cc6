"""The time of a growth: all layers that grow, from the start's widths to the next ones."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch

import splitgrow
from benchmarks.learning.rivals.contenders import contender, picture
from benchmarks.learning.rivals.grounds import Ground
from benchmarks.learning.rivals.records import Timing
from benchmarks.learning.tasks import Batch, loss_of

TIMED = (
    ("splitgrow", "zero"),
    ("splitgrow", "pair"),
    ("splitgrow", "gradient"),
    ("splitgrow", "tiny"),
    ("gromo", "copy_uniform"),
    ("gromo", "pairing"),
    ("gromo", "GradMax"),
    ("gromo", "TINY"),
)


def timed(ground: Ground, rounds: int = 5) -> Iterator[Timing]:
    """Times the growths of both libraries in turn, in rotating order."""
    size = ground.batches[1]
    batch = torch.randn(size, *picture(ground)), torch.randint(10, (size,))
    found: dict[tuple[str, str], list[float]] = {}
    for number in range(rounds + 1):
        turn = number % len(TIMED)
        for library, way in (*TIMED[turn:], *TIMED[:turn]):
            found.setdefault((library, way), []).append(_growth(ground, library, way, batch))
        found.setdefault(("none", "step"), []).append(_step(ground, batch))
        found.setdefault(("none", "growable"), []).append(_analysis(ground, batch))
    for (library, way), seconds in found.items():
        yield Timing(ground.name, library, way, size, tuple(seconds[1:]))  # the first warms up


def _growth(ground: Ground, library: str, way: str, batch: Batch) -> float:
    torch.manual_seed(0)
    own = contender(
        library, ground, way, ground.start, "kept" if library == "splitgrow" else "moved"
    )
    optimizer = torch.optim.AdamW(own.model.parameters())
    _trained(own.model, optimizer, batch)
    widths = ground.stages(3)[0]
    started = time.process_time()
    own.grow(widths, optimizer, [batch])
    return time.process_time() - started


def _trained(model: Any, optimizer: torch.optim.AdamW, batch: Batch) -> None:
    optimizer.zero_grad()
    loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _step(ground: Ground, batch: Batch) -> float:
    model = ground.make(ground.start)
    optimizer = torch.optim.AdamW(model.parameters())
    _trained(model, optimizer, batch)
    started = time.process_time()
    _trained(model, optimizer, batch)
    return time.process_time() - started


def _analysis(ground: Ground, batch: Batch) -> float:
    model = ground.make(ground.start)
    started = time.process_time()
    splitgrow.growable(model, batch[0][:2])
    return time.process_time() - started
