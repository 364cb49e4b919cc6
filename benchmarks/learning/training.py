"""One training run: a small network, a large one, or one that grows, to the same multiply-adds."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import splitgrow
from benchmarks.learning.tasks import Batch, Task, loss_of, score_of

POINTS = 10
"""The number of times at which a run is scored."""
WARMUP = 0.03
"""The share of the budget over which the rate rises; then it falls by a cosine to zero."""


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Attributes:
        name: Its name.
        start: "small" or "large".
        share: The share of the task's budget that it gets.
        grown_at: The shares of its own budget at which it grows; empty if it does not.
        initializer: The initializer of its growths.
        freeze: Whether growth freezes the past.
    """

    name: str
    start: str
    share: float = 1.0
    grown_at: tuple[float, ...] = ()
    initializer: str = "zero"
    freeze: bool = False


@dataclass(frozen=True)
class Job:
    """A run to make.

    Attributes:
        task: The task's name.
        arm: The arm's name.
        budget: The multiply-adds of the arms of a whole share, in billions.
        batch: The size of batches.
        rate: The learning rate.
        seed: The seed.
    """

    task: str
    arm: str
    budget: float
    batch: int
    rate: float
    seed: int


@dataclass(frozen=True)
class Run:
    """A run that was made.

    Attributes:
        job: The job.
        steps: The number of training steps.
        seconds: The processor time of all steps and growths, of one thread.
        growing: The part of it that growth took.
        test: The score on the test data.
        curve: Multiply-adds so far in billions, seconds so far, and the score on the validation
            data.
        jumps: The score on the validation data before and after each growth.
        refused: Why it could not grow; empty if it could.
    """

    job: Job
    steps: int
    seconds: float
    growing: float
    test: float
    curve: tuple[tuple[float, float, float], ...]
    jumps: tuple[tuple[float, float], ...] = ()
    refused: str = ""

    @property
    def validation(self) -> float:
        """The last score on the validation data."""
        return self.curve[-1][2]


def multiply_adds(model: nn.Module, batch: Batch) -> float:
    """The multiply-adds of one training step, in billions, counted by torch."""
    with FlopCounterMode(display=False) as counter:
        loss_of(model, batch).backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops() / 2e9


def widths_of(model: nn.Module, example: Any) -> list[int]:
    """The widths of the layers of a network that can grow, in the order in which they run."""
    grown: Any = splitgrow.growable(model, example)
    return [layer.width for layer in grown.layers if layer.growable]


@dataclass
class Training:
    """A training run.

    Attributes:
        job: The job.
        task: The task.
        arm: The arm.
        folder: The folder with the data.
        watch: Told after each step what share of the budget is used.
    """

    job: Job
    task: Task
    arm: Arm
    folder: Path
    watch: Callable[[float], None] = field(default=lambda _: None)

    def run(self) -> Run:
        """Trains until the budget is used up, or a growth is refused."""
        job, data = self.job, self.task.data(self.folder)
        torch.manual_seed(job.seed)
        model: Any = self.task.small() if self.arm.start == "small" else self.task.large()
        probe = next(data.batches(job.batch, 0))
        budget = job.budget * self.arm.share
        optimizer = torch.optim.AdamW(model.parameters(), lr=job.rate, weight_decay=0.01)
        pending = [*self.arm.grown_at]
        if pending:
            large = widths_of(self.task.large(), probe[0][:2])
            model = splitgrow.growable(model, probe[0][:2])
        each = multiply_adds(model, probe)
        used = seconds = growing = 0.0
        steps, marks = 0, [budget * n / POINTS for n in range(1, POINTS + 1)]
        curve: list[tuple[float, float, float]] = []
        jumps: list[tuple[float, float]] = []
        for batch in data.batches(job.batch, job.seed):
            if pending and used >= pending[0] * budget:
                before = score_of(model, self.task, data.validation)
                started = time.process_time()
                try:
                    self._grow(model, optimizer, len(pending), large, batch)
                except (splitgrow.SplitGrowError, ValueError) as error:
                    return Run(job, steps, 0.0, 0.0, math.nan, (), refused=str(error))
                pending.pop(0)
                growing += time.process_time() - started
                jumps.append((before, score_of(model, self.task, data.validation)))
                each = multiply_adds(model, probe)
            started = time.process_time()
            _step(model, optimizer, batch, job.rate * scheduled(used / budget))
            seconds += time.process_time() - started
            used, steps = used + each, steps + 1
            self.watch(used / budget)
            if used >= marks[0]:
                marks = [mark for mark in marks if mark > used]
                score = score_of(model, self.task, data.validation)
                curve.append((round(used, 2), round(seconds + growing, 2), score))
            if not marks:
                break
        test = score_of(model, self.task, data.test)
        return Run(job, steps, seconds + growing, growing, test, tuple(curve), tuple(jumps))

    def _grow(
        self,
        model: Any,
        optimizer: torch.optim.Optimizer,
        left: int,
        large: list[int],
        batch: Batch,
    ) -> None:
        """Grows by the first of the growths that are left, in geometric steps to a width each."""
        options: dict[str, Any] = {"freeze": self.arm.freeze, "optimizer": optimizer}
        if self.task.copied and left == len(self.arm.grown_at):
            model.insert_layer([*self.task.copied], "block", check=False, **options)
        layers = [layer for layer in model.layers if layer.growable]
        request = {
            layer.name: _fitting(layer, width, 1 / left) - layer.width
            for layer, width in zip(layers, large, strict=True)
            if width > layer.width
        }
        if request:
            model.expand(
                request,
                initializer=self.arm.initializer,
                loss=lambda: loss_of(model, batch),
                check=False,
                **options,
            )
        if not self.arm.freeze:
            model.absorb(optimizer=optimizer, check=False)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    optimizer.step()


def _fitting(layer: splitgrow.Layer, end: int, share: float) -> int:
    """A width between a layer's and another, in geometric proportion, by even numbers of units."""
    step = math.lcm(layer.step, 2)
    wanted = layer.width * (end / layer.width) ** share
    steps = math.ceil((wanted - layer.width) / step - 1e-9)
    return min(end, layer.width + steps * step)


def scheduled(share: float) -> float:
    """The factor on the rate at a share of the budget."""
    if share < WARMUP:
        return (share + 1e-3) / WARMUP
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("large", "large"),
        Arm("large, half", "large", 0.5),
        Arm("small", "small"),
        Arm("small, half", "small", 0.5),
        Arm("grown", "small", 1.0, (0.2, 0.35, 0.5)),
        Arm("grown, half", "small", 0.5, (0.2, 0.35, 0.5)),
        Arm("frozen", "small", 1.0, (0.2, 0.35, 0.5), freeze=True),
    )
}
INITIALIZED: dict[str, Arm] = {
    f"grown, half, {name}": dataclasses.replace(ARMS["grown, half"], initializer=name)
    for name in splitgrow.initializers()
    if name != ARMS["grown, half"].initializer
}
