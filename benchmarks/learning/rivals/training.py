"""One training run of a network that a library grows, or of the large one from the start."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from benchmarks.learning.rivals.contenders import contender, statistics_cost
from benchmarks.learning.rivals.grounds import GROUNDS, Ground
from benchmarks.learning.rivals.records import Job, Run
from benchmarks.learning.tasks import Batch, loss_of
from benchmarks.learning.training import multiply_adds, scheduled

GROWN_AT = (0.2, 0.35, 0.5)
"""The shares of the budget at which networks grow."""
SAMPLES = {"mlp": 2048, "vgg": 256, "resnet": 256}
"""The samples for the statistics of gromo; splitgrow's initializers see the batch of the step."""


@dataclass
class _Plain:
    """The large network from the start."""

    model: Any


@torch.no_grad()
def accuracy(model: Any, batch: Batch) -> float:
    """The accuracy in percent, in evaluation mode."""
    model.eval()
    x, y = batch
    parts = x.split(500)  # type: ignore[no-untyped-call]
    found = torch.cat([model(part).argmax(1) for part in parts])
    model.train()
    return 100 * float((found == y).double().mean())


def _first(batch: Batch, count: int) -> Batch:
    return batch[0][:count], batch[1][:count]


def samples_of(ground: Ground, batches: Iterator[Batch]) -> list[Batch]:
    """Batches of 128 for statistics."""
    return list(islice(batches, SAMPLES[ground.name] // 128))


def run(job: Job, folder: Path) -> Run:
    """Trains until the budget is used up."""
    ground = GROUNDS[job.ground]
    data, budget = ground.data(folder), ground.budget * job.share
    torch.manual_seed(job.seed)
    grows = job.library != "none"
    own: Any = (
        contender(job.library, ground, job.way, ground.start, job.state)
        if grows
        else _Plain(ground.make(ground.end))
    )
    optimizer = torch.optim.AdamW(own.model.parameters(), lr=job.rate, weight_decay=0.01)
    pending = [*zip(GROWN_AT, ground.stages(3), strict=True)] if grows else []
    probe, more = next(data.batches(job.batch, 0)), data.batches(128, job.seed + 1000)
    each = multiply_adds(own.model, probe)
    used = seconds = growing = statistics = 0.0
    steps = 0
    jumps: list[tuple[float, float]] = []
    quick = _first(data.validation, 1000)
    for batch in data.batches(job.batch, job.seed):
        if pending and used >= pending[0][0] * budget:
            samples = samples_of(ground, more) if job.library == "gromo" else [batch]
            count = sum(len(y) for _, y in samples)
            number = len(jumps)
            cost = statistics_cost(job.library, job.ground, job.way, number, count)
            before = accuracy(own.model, quick)
            started = time.process_time()
            optimizer = own.grow(pending.pop(0)[1], optimizer, samples)
            growing += time.process_time() - started
            jumps.append((before, accuracy(own.model, quick)))
            statistics += cost
            used += cost if job.counted else 0
            each = multiply_adds(own.model, probe)
        started = time.process_time()
        optimizer.param_groups[0]["lr"] = job.rate * scheduled(used / budget)
        optimizer.zero_grad()
        loss_of(own.model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        seconds += time.process_time() - started
        used, steps = used + each, steps + 1
        if used >= budget and not pending:
            break
    validation, test = (
        accuracy(own.model, _first(part, 3000)) for part in (data.validation, data.test)
    )
    seconds += growing
    return Run(job, steps, seconds, growing, statistics, validation, test, tuple(jumps))
