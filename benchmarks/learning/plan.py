"""The runs to make: settings are chosen on one seed, and the best of each arm is run with all."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

from benchmarks.learning.tasks import Task
from benchmarks.learning.training import ARMS, INITIALIZED, Job, Run

BY = "grown, half"
SMALL = "small, half"
TUNED = {"large": "large", "large, half": "large", "small": SMALL, SMALL: SMALL}
"""The arm whose best batch and rate another one has; `BY` for all that are not here."""


def read(path: Path) -> list[Run]:
    """The runs in a file; none if there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [_run(json.loads(line)) for line in lines]


def _run(fields: dict[str, object]) -> Run:
    job = Job(**fields.pop("job"))  # type: ignore[arg-type]
    pairs = {key: tuple(map(tuple, fields.pop(key))) for key in ("curve", "jumps")}  # type: ignore[call-overload]
    return Run(job, **fields, **pairs)  # type: ignore[arg-type]


def write(path: Path, run: Run) -> None:
    """Adds a run to a file."""
    with path.open("a") as file:
        file.write(json.dumps(asdict(run)) + "\n")


def missing(task: Task, budget: float, runs: Sequence[Run], seeds: int) -> Iterator[Job]:
    """The runs that are still to be made, in order; call it again once they are made.

    Args:
        task: The task.
        budget: The multiply-adds, in billions.
        runs: The runs that are there.
        seeds: The number of seeds.
    """
    done = {run.job for run in runs}
    tuning = [
        Job(task.name, arm, budget, batch, rate, 0)
        for arm, batch, rate in product(("large", BY, SMALL), task.batches, task.rates)
    ]
    left = [job for job in tuning if job not in done]
    if left:
        yield from left
        return
    for arm, seed in product(ARMS, range(seeds)):
        chosen = best_settings(task, budget, runs, TUNED.get(arm, BY))
        job = Job(task.name, arm, budget, *chosen, seed)
        if job not in done:
            yield job


def missing_initializers(
    task: Task, budget: float, runs: Sequence[Run], seeds: int
) -> Iterator[Job]:
    """The runs of the initializers that are still to be made, with the settings of `BY`."""
    done = {run.job for run in runs}
    for seed, arm in product(range(seeds), INITIALIZED):
        job = Job(task.name, arm, budget, *best_settings(task, budget, runs, BY), seed)
        if job not in done:
            yield job


def best_settings(task: Task, budget: float, runs: Sequence[Run], arm: str) -> tuple[int, float]:
    """The batch and the rate with which an arm does best on the validation data, on seed 0."""
    tried = [run for run in runs if (run.job.arm, run.job.budget, run.job.seed) == (arm, budget, 0)]
    chosen = (min if task.error else max)(tried, key=lambda run: run.validation)
    return chosen.job.batch, chosen.job.rate
