"""Runs as processes, so many at once, and the data that they are given."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from rich.console import Console

from benchmarks.continual.jobs import Job
from benchmarks.continual.suites import SUITES
from benchmarks.continual.task_files import Task as ArrayTask
from benchmarks.continual.task_files import write_tasks
from splitgrow.continual.stages import seed_of
from splitgrow.continual.tasks import with_validation
from splitgrow.demos import datasets
from splitgrow.demos.tasksets import tasks_of

console = Console()


def data_option(
    _ctx: click.Context, _option: click.Parameter, texts: Sequence[str]
) -> dict[str, Path]:
    """Paths of data by suite, from `NAME=PATH` as often as it is given."""
    found = {}
    for text in texts:
        name, _, path = text.partition("=")
        if name not in {suite.name for suite in SUITES} or not path:
            raise click.BadParameter(f"{text!r} has no NAME=PATH form of a suite")
        found[name] = Path(path)
    return found


def write_task_files(jobs: Sequence[Job]) -> None:
    """The tasks as our learners divide them, so that Avalanche trains on the same images."""
    for job in jobs:
        if not job.contestant.peer or job.tasks_file.exists():
            continue
        dataset = datasets.load_dataset(job.data, seed=job.seed)
        tasks = tasks_of(dataset, "classes", job.suite.tasks, seed=job.seed, limit=job.suite.limit)
        arrays = []
        for number, task in enumerate(tasks, 1):
            generator = torch.Generator().manual_seed(seed_of(job.seed, number, "validation"))
            parts = with_validation(task, 0.1, generator)
            x, y = parts.train[:]  # type: ignore[index]
            x_test, y_test = parts.test[:]  # type: ignore[index]
            arrays.append(ArrayTask(x.numpy(), y.numpy(), x_test.numpy(), y_test.numpy()))
        job.tasks_file.parent.mkdir(parents=True, exist_ok=True)
        write_tasks(job.tasks_file, arrays)


def run_all(waiting: list[Job], jobs: int, threads: int, avalanche: str | None) -> None:
    """Runs them, so many at once; what fails is told, and the others go on."""
    running: list[tuple[Job, subprocess.Popen[bytes], float]] = []
    total, done = len(waiting), 0
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                job = waiting.pop(0)
                running.append((job, job.start(threads, avalanche), time.monotonic()))
            time.sleep(0.5)
            for entry in [entry for entry in running if entry[1].poll() is not None]:
                running.remove(entry)
                job, process, began = entry
                done += 1
                how = "done" if job.finished else f"FAILED ({process.returncode})"
                console.print(
                    f"{done}/{total} {job.suite.name} {job.contestant.name} seed {job.seed}: "
                    f"{how} in {time.monotonic() - began:.0f} s"
                )
    finally:
        for _, process, _ in running:
            process.terminate()
