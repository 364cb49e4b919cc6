"""Makes the runs of continual learning that are missing, and the page of what they came to.

    python -m benchmarks.continual --runs DIR --data glyph100=PATH --data cifar10=PATH

Every run is a process of its own, which goes on where it was if it was stopped. --page writes
benchmarks/CONTINUAL.md and its pictures from benchmarks/results/continual.json, and stops.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.continual.jobs import Job
from benchmarks.continual.picture import write_pictures
from benchmarks.continual.results import (
    PAGE,
    RESULTS,
    TUNING,
    found_of,
    page,
    read_results,
    write_results,
)
from benchmarks.continual.running import console, data_option, run_all, write_task_files
from benchmarks.continual.suites import SUITES, ordered
from benchmarks.speed.machine import commit, machine
from benchmarks.speed.settings import Settings


@click.command()
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), metavar="DIR")
@click.option(
    "--data", callback=data_option, multiple=True, metavar="NAME=PATH", help="Of a suite."
)
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
        write_task_files(missing)
        run_all([job for job in missing if not job.finished], jobs, threads, avalanche)
        _collect(missing, threads)
    found, where = read_results(RESULTS)
    tuning = json.loads(TUNING.read_text()) if TUNING.exists() else None
    PAGE.write_text(page(found, where, tuning), encoding="utf-8")
    write_pictures(found)
    console.print(f"{PAGE}: {len(found)} runs")


def _jobs(
    runs: Path, data: dict[str, Path], only: Sequence[str], seeds: int, avalanche: str | None
) -> Iterator[Job]:
    for seed in range(seeds):
        for suite in SUITES:
            for contestant in ordered():
                chosen = not only or contestant.name in only
                chosen = chosen and suite.name in (contestant.only or {suite.name})
                able = avalanche is not None or not contestant.peer
                if suite.name in data and chosen and able:
                    yield Job(suite, contestant, seed, data[suite.name].resolve(), runs.resolve())


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
