"""Runs the benchmark of growing to learn, and writes its page.

    python -m benchmarks.learning --runs DIR --data glyph100=PATH --data cifar10=PATH
    python -m benchmarks.learning --runs DIR --part initializers --only vgg-glyph100
    python -m benchmarks.learning --runs DIR --part scores --only vgg-glyph100
    python -m benchmarks.learning --runs DIR --page

Each run is kept in DIR as it is done. A stopped benchmark goes on where it was, and several
processes can share the tasks by --only. One thread of each process computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click
import torch
from rich.console import Console

from benchmarks.learning.plan import missing, missing_initializers, read, write
from benchmarks.learning.tasks import BUDGETS, TASKS, Task, prepare
from benchmarks.learning.training import ARMS, INITIALIZED, Job, Run, Training
from benchmarks.learning.where import STEPS, read_trials, tried, write_trial

console = Console()
Jobs = Callable[[Task, float, Sequence[Run], int], Iterable[Job]]
PARTS: dict[str, Jobs] = {"arms": missing, "initializers": missing_initializers}


def data_option(
    _context: click.Context, _option: click.Parameter, given: tuple[str, ...]
) -> dict[str, Path]:
    """The paths of data sets by name.

    Raises:
        BadParameter: If one is no NAME=PATH, or there is no such file.
    """
    found = {}
    for item in given:
        name, _, path = item.partition("=")
        if name not in {"glyph100", "cifar10"} or not Path(path).exists():
            raise click.BadParameter(f"{item!r} must be glyph100=PATH or cifar10=PATH of a file")
        found[name] = Path(path)
    return found


def run_all(folder: Path, task: Task, budget: str, seeds: int, jobs: Jobs) -> None:
    """Makes the runs of a task that are missing."""
    path = folder / f"{task.name}-{budget}.jsonl"
    size = task.budgets[BUDGETS.index(budget)]
    while left := [*jobs(task, size, runs := read(path), seeds)]:
        job = left[0]
        console.print(
            f"{task.name}, {budget}: {job.arm}, batch {job.batch}, rate {job.rate:g}, seed "
            f"{job.seed}; {len(runs)} done",
            highlight=False,
        )
        run = Training(job, task, (ARMS | INITIALIZED)[job.arm], folder).run()
        write(path, run)
        told = run.refused or f"{run.validation:.3f}, {run.seconds:.0f} s"
        console.print(f"  {told}", highlight=False)


def try_scores(folder: Path, task: Task, seeds: int) -> None:
    """Makes the trials of the scores that are missing."""
    path = folder / "where.jsonl"
    done = {(trial.task, trial.seed) for trial in read_trials(path)}
    for seed in range(seeds):
        if (task.name, seed) not in done:
            console.print(f"{task.name}: scores and gains, seed {seed}", highlight=False)
            write_trial(path, tried(task, task.data(folder), seed, STEPS))


@click.command()
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--data", callback=data_option, multiple=True, metavar="NAME=PATH")
@click.option("--only", multiple=True, type=click.Choice([*TASKS]), help="Only these tasks.")
@click.option("--budget", type=click.Choice(BUDGETS), default="short", show_default=True)
@click.option(
    "--part",
    type=click.Choice([*PARTS, "scores"]),
    default="arms",
    show_default=True,
    help="The networks; or each initializer, with the settings that the networks' runs chose; or "
    "each score beside the gain of growing each layer alone.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option("--page", is_flag=True, help="Only write the page from the runs that are there.")
def main(
    runs: Path,
    data: dict[str, Path],
    only: tuple[str, ...],
    budget: str,
    part: str,
    seeds: int,
    *,
    page: bool,
) -> None:
    """Growing towards a size, against that size from the start."""
    torch.set_num_threads(1)
    if page:
        from benchmarks.learning.page import write_page  # noqa: PLC0415 - matplotlib

        console.print(f"wrote {write_page(runs)}")
        return
    for name, path in data.items():
        if not (runs / f"{name}.pt").exists():
            console.print(f"reading {path}")
            prepare(path, runs / f"{name}.pt")
    for task in TASKS.values():
        if only and task.name not in only:
            continue
        try:
            if part == "scores":
                try_scores(runs, task, seeds)
            else:
                run_all(runs, task, budget, seeds, PARTS[part])
        except FileNotFoundError as error:
            console.print(f"{task.name} is left out: {error}; give its data by --data")
        except KeyboardInterrupt:
            console.print("Stopped; the finished runs are kept, and the next call goes on.")
            raise SystemExit(130) from None


if __name__ == "__main__":
    main()
