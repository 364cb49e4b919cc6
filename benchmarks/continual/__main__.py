"""Makes the runs of continual learning that are missing, and the page of what they came to.

    python -m benchmarks.continual --runs DIR --data glyph100=PATH --data cifar10=PATH

Every run is a process of its own, which goes on where it was if it was stopped. --page writes
benchmarks/CONTINUAL.md from benchmarks/results/continual.json, and stops.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from benchmarks.continual.jobs import Job
from benchmarks.continual.results import (
    PAGE,
    RESULTS,
    found_of,
    page,
    read_results,
    write_results,
)
from benchmarks.continual.suites import SUITES, ordered
from benchmarks.continual.task_files import Task as ArrayTask
from benchmarks.continual.task_files import write_tasks
from benchmarks.speed.machine import commit, machine
from benchmarks.speed.settings import Settings
from splitgrow.cli import datasets
from splitgrow.cli.tasksets import tasks_of
from splitgrow.continual.stages import seed_of
from splitgrow.continual.tasks import with_validation

console = Console()


def _data(_ctx: click.Context, _option: click.Parameter, texts: Sequence[str]) -> dict[str, Path]:
    found = {}
    for text in texts:
        name, _, path = text.partition("=")
        if name not in {suite.name for suite in SUITES} or not path:
            raise click.BadParameter(f"{text!r} has no NAME=PATH form of a suite")
        found[name] = Path(path)
    return found


@click.command()
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@click.option("--data", callback=_data, multiple=True, metavar="NAME=PATH", help="Of a suite.")
@click.option("--only", multiple=True, metavar="CONTESTANT", help="These alone; can be repeated.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="At once.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of a run.")
@click.option("--avalanche", metavar="PYTHON", help="An interpreter that has Avalanche.")
@click.option("--page", "only_page", is_flag=True, help="Write the page, and stop.")
def main(  # noqa: PLR0913
    runs: Path | None,
    data: dict[str, Path],
    only: tuple[str, ...],
    *,
    seeds: int,
    jobs: int,
    threads: int,
    avalanche: str | None,
    only_page: bool,
) -> None:
    """Makes runs, and the page of what they came to."""
    if not only_page:
        if runs is None or not data:
            raise click.UsageError("--runs DIR and --data NAME=PATH are needed, or --page")
        missing = [*_jobs(runs, data, only, seeds, avalanche)]
        _write_task_files(missing)
        _run([job for job in missing if not job.finished], jobs, threads, avalanche)
        _collect(missing, threads)
    found, where = read_results(RESULTS)
    PAGE.write_text(page(found, where), encoding="utf-8")
    console.print(f"{PAGE}: {len(found)} runs")


def _jobs(
    runs: Path, data: dict[str, Path], only: Sequence[str], seeds: int, avalanche: str | None
) -> Iterator[Job]:
    for seed in range(seeds):
        for suite in SUITES:
            for contestant in ordered():
                chosen = not only or contestant.name in only
                able = avalanche is not None or not contestant.peer
                if suite.name in data and chosen and able:
                    yield Job(suite, contestant, seed, data[suite.name].resolve(), runs.resolve())


def _write_task_files(jobs: Sequence[Job]) -> None:
    """The tasks as our learners divide them, so that Avalanche trains on the same images."""
    for job in jobs:
        if not job.contestant.peer or job.tasks_file.exists():
            continue
        dataset = datasets.load(job.data, seed=job.seed)
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


def _run(waiting: list[Job], jobs: int, threads: int, avalanche: str | None) -> None:
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


def _collect(jobs: Sequence[Job], threads: int) -> None:
    """Adds what has come of runs to the results; others that are there stay."""
    where = {**machine(Settings(threads=threads)), "commit": commit()}
    found = {(f.suite, f.contestant, f.seed): f for f in _known()}
    for job in jobs:
        if job.finished:
            each = found_of(job)
            found[each.suite, each.contestant, each.seed] = each
    write_results(RESULTS, [*found.values()], where)


def _known() -> list[Any]:
    try:
        return read_results(RESULTS)[0]
    except (FileNotFoundError, json.JSONDecodeError):
        return []


if __name__ == "__main__":
    main()
