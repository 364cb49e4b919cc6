"""Runs the benchmark beside gromo; it needs gromo 0.1.0 (`pip install gromo==0.1.0`).

    python -m benchmarks.learning.rivals --runs DIR --data DIR
    python -m benchmarks.learning.rivals --runs DIR --times
    python -m benchmarks.learning.rivals --runs DIR --data DIR --cases

DATA holds the tensors that `python -m benchmarks.learning` prepares. Each run is kept in DIR as it
is done, and a stopped benchmark goes on where it was. One thread computes.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import click
import torch
from rich.console import Console

from benchmarks.learning.rivals.gromo_networks import silent
from benchmarks.learning.rivals.grounds import GROUNDS, Ground
from benchmarks.learning.rivals.plan import missing
from benchmarks.learning.rivals.records import Job, Run, add, read
from benchmarks.learning.rivals.training import run

console = Console()


def run_all(runs: Path, data: Path, ground: Ground) -> None:
    """Makes the runs of a network that are missing."""
    path = runs / f"{ground.name}.jsonl"
    while jobs := [*missing(ground, made := read(path))]:
        job = jobs[0]
        console.print(f"{len(made)} done, {len(jobs)} to go: {job}", highlight=False)
        result = tried(job, data)
        add(path, [result])
        told = f"  {result.validation:.2f}, {result.seconds:.1f} s {result.error}"
        console.print(told, highlight=False, markup=False)


def tried(job: Job, data: Path) -> Run:
    """A run, or the exception that ended it."""
    try:
        return run(job, data)
    except Exception as error:  # noqa: BLE001 - whatever either library raises is a result
        said = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        none = math.nan
        return Run(job, 0, none, none, none, none, none, error=said)


@click.command()
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--data", type=click.Path(path_type=Path, file_okay=False))
@click.option("--only", multiple=True, type=click.Choice([*GROUNDS]), help="Only these networks.")
@click.option("--times", is_flag=True, help="Only time growth.")
@click.option("--cases", is_flag=True, help="Only try which cases each library can grow.")
def main(runs: Path, data: Path | None, only: tuple[str, ...], *, times: bool, cases: bool) -> None:
    """Growth while training, beside gromo."""
    torch.set_num_threads(1)
    silent()
    runs.mkdir(parents=True, exist_ok=True)
    if times:
        from benchmarks.learning.rivals.timing import timed  # noqa: PLC0415 - only then needed

        for ground in GROUNDS.values():
            add(runs / "times.jsonl", timed(ground))
        return
    if data is None:
        console.print("--data is needed")
        sys.exit(2)
    if cases:
        from benchmarks.learning.rivals.cases import tried_cases  # noqa: PLC0415 - only then needed

        add(runs / "cases.jsonl", tried_cases(data))
        return
    for ground in GROUNDS.values():
        if not only or ground.name in only:
            run_all(runs, data, ground)


if __name__ == "__main__":
    main()
