"""A small GPT over bytes, and its training: large from the start, or grown on the way."""

from __future__ import annotations

import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import splitgrow
from benchmarks.learning.networks import Gpt

WAYS = ("large", "grown", "small")
HEAD = 32
"""The units of a head."""
GPT = partial(Gpt, size=HEAD)
"""The network, given its sizes and the context."""


@dataclass(frozen=True)
class Settings:
    """How the runs are made.

    Attributes:
        small: Width, heads, hidden units of an MLP and blocks at the start of a grown run.
        large: The same in the end, and of the large network.
        context: The number of bytes that are seen at once.
        batch: The number of texts in a batch.
        steps: The training steps of the large network, which set the multiply-adds of all runs.
        grown_at: The shares of the multiply-adds after which widths grow, and then the depth.
        rates: The learning rates, of which the best by validation counts for each way.
        tested: The number of batches of a validation.
    """

    small: tuple[int, int, int, int] = (64, 2, 128, 2)
    large: tuple[int, int, int, int] = (128, 4, 512, 4)
    context: int = 64
    batch: int = 16
    steps: int = 300
    grown_at: tuple[float, float] = (0.15, 0.3)
    rates: tuple[float, ...] = (1e-3, 3e-3)
    tested: int = 20


@dataclass(frozen=True)
class Run:
    """What one training gave.

    Attributes:
        way: "large", "grown" or "small".
        seed: Its seed.
        rate: Its learning rate.
        seconds: The time of its training steps.
        curve: Multiply-adds so far, in billions, and the validation loss in nats for a byte.
        moved: The largest difference that growth made to its outputs.
    """

    way: str
    seed: int
    rate: float
    seconds: float
    curve: tuple[tuple[float, float], ...]
    moved: float = 0.0

    @property
    def loss(self) -> float:
        """The last validation loss."""
        return self.curve[-1][1]


def text() -> tuple[Tensor, Tensor]:
    """The sources of Python's standard library as bytes: those to train on, and those to test on.

    Every twentieth file is for tests.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(p for p in root.glob("*.py"))
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for index, path in enumerate(files):
        parts[index % 20 == 0].append(path.read_bytes())
    train, test = (torch.frombuffer(bytearray(b"\n".join(p)), dtype=torch.uint8) for p in parts)
    return train.long(), test.long()


def multiply_adds(model: nn.Module, x: Tensor) -> float:
    """The multiply-adds of one training step, in billions, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(x).flatten(0, 1), x.flatten()).backward()
    model.zero_grad()
    return counter.get_total_flops() / 2e9


def grow_widths(model: Any, settings: Settings, optimizer: Any) -> None:
    """Grows the stream, the heads and the MLPs of all blocks to the large network's sizes."""
    request = {"embed": settings.large[0] - settings.small[0]}
    for index in range(len(model.blocks)):
        name = f"blocks.{index}"
        request[f"{name}.value"] = HEAD * (settings.large[1] - settings.small[1])
        request[f"{name}.up"] = settings.large[2] - settings.small[2]
    model.expand(request, freeze=False, optimizer=optimizer)


def grow_depth(model: Any, settings: Settings, optimizer: Any) -> None:
    """Inserts a copy of each block behind it."""
    for index in reversed(range(settings.large[3] - settings.small[3])):
        model.insert_layer(f"blocks.{index}", "block", freeze=False, optimizer=optimizer)


@dataclass
class Training:
    """One training run.

    Attributes:
        way: The way.
        seed: The seed.
        rate: The learning rate.
        settings: The settings.
        data: Bytes to train on and to test on.
        watch: Told after each step what share of the multiply-adds is used.
    """

    way: str
    seed: int
    rate: float
    settings: Settings
    data: tuple[Tensor, Tensor]
    watch: Callable[[float], None] = field(default=lambda _: None)

    def run(self) -> Run:
        """Trains until the large network's multiply-adds are used up."""
        torch.manual_seed(self.seed)
        draw = torch.Generator().manual_seed(self.seed)
        sizes = self.settings.large if self.way == "large" else self.settings.small
        model: Any = GPT(sizes, self.settings.context)
        probe = next(self._batches(self.data[1], torch.Generator().manual_seed(0)))[0]
        whole = multiply_adds(GPT(self.settings.large, self.settings.context), probe)
        budget = self.settings.steps * whole
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.rate, weight_decay=0.01)
        pending = []
        if self.way == "grown":
            model = splitgrow.growable(model, probe)
            shares = self.settings.grown_at
            pending = [(shares[0] * budget, grow_widths), (shares[1] * budget, grow_depth)]
        each, used, seconds, moved = multiply_adds(model, probe), 0.0, 0.0, 0.0
        curve = [(0.0, self._validated(model))]
        marks = [budget * n / 20 for n in range(1, 21)]
        for x, y in self._batches(self.data[0], draw):
            if pending and used >= pending[0][0]:
                before = self._outputs(model, probe)
                pending.pop(0)[1](model, self.settings, optimizer)
                moved = max(moved, float((self._outputs(model, probe) - before).abs().max()))
                each = multiply_adds(model, probe)
            started = time.perf_counter()
            optimizer.zero_grad()
            F.cross_entropy(model(x).flatten(0, 1), y.flatten()).backward()
            optimizer.step()
            seconds, used = seconds + time.perf_counter() - started, used + each
            self.watch(used / budget)
            if used >= marks[0]:
                marks = [mark for mark in marks if mark > used]
                curve.append((used, self._validated(model)))
            if not marks:
                break
        return Run(self.way, self.seed, self.rate, seconds, tuple(curve), moved)

    def _batches(self, data: Tensor, draw: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        span = torch.arange(self.settings.context)
        while True:
            last = len(data) - self.settings.context - 1
            at = torch.randint(last, (self.settings.batch, 1), generator=draw) + span
            yield data[at], data[at + 1]

    @torch.no_grad()
    def _outputs(self, model: nn.Module, x: Tensor) -> Tensor:
        return model.eval()(x).clone()  # type: ignore[no-any-return]

    @torch.no_grad()
    def _validated(self, model: nn.Module) -> float:
        batches = self._batches(self.data[1], torch.Generator().manual_seed(1))
        model.eval()
        losses = [
            float(F.cross_entropy(model(x).flatten(0, 1), y.flatten()))
            for _, (x, y) in zip(range(self.settings.tested), batches, strict=False)
        ]
        model.train()
        return sum(losses) / len(losses)
