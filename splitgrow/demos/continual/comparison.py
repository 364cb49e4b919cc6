"""`splitgrow compare`: a table of runs, averaged over seeds."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from splitgrow.cli.continual_settings import RunSettings
from splitgrow.cli.screen_tables import ScreenTable, fits_filter, unfitting
from splitgrow.cli.showing import Shown
from splitgrow.demos.continual.outcome import OutcomeError, RunOutcome, read_outcome


@dataclass(frozen=True)
class Spread:
    """Some values: their mean, and the smallest and the largest."""

    mean: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of values."""
        return cls(statistics.fmean(values), min(values), max(values))


@dataclass(frozen=True, kw_only=True)
class Row:
    """Runs that differ in their seed alone.

    Attributes:
        settings: Those of the first.
        dataset: The name of the data.
        runs: How many there are.
        tasks: How many tasks each has learned.
        accuracy: The mean test accuracy of all tasks after the last.
        learned: The mean test accuracy of every task when it was learned.
        forgetting: By how much the accuracy fell since its best.
        expansion: How many times the weights of one network there are.
        megabytes: The size of all tasks' networks together, masks counted.
        seconds: How long learning took.
        unchanged: Whether every task's outputs stayed the same, bit for bit, in all runs.
    """

    settings: RunSettings
    dataset: str
    runs: int
    tasks: int
    accuracy: Spread
    learned: Spread
    forgetting: Spread
    expansion: Spread
    megabytes: Spread
    seconds: Spread
    unchanged: bool


def compare_runs(runs: Sequence[Path], shown: Shown) -> None:
    """Prints a table of runs.

    Raises:
        click.ClickException: If one cannot be read, or is not finished.
    """
    try:
        outcomes = [read_outcome(path) for path in runs]
    except OutcomeError as error:
        raise click.ClickException(str(error)) from error
    for path, outcome in zip(runs, outcomes, strict=True):
        if not outcome.finished:
            raise click.ClickException(
                f"{path} is not finished: {len(outcome.tasks)} of {outcome.settings.tasks} tasks "
                f"are learned; run it again to go on"
            )
    every = rows(outcomes)
    found = [row for row in every if fits_filter(row.settings.method, shown.patterns)]
    problem = unfitting((row.settings.method for row in every), shown.patterns)
    if problem and not shown.quiet:
        click.echo(problem, err=True)
    if shown.as_json:
        document = {"version": 1, "rows": [_plain(row) for row in found]}
        shown.echo_json(json.dumps(document, indent=1))
    elif shown.quiet:
        for row in found:
            click.echo(label_of(row))
    else:
        datasets = dict.fromkeys(row.dataset for row in found)
        replace(shown, patterns=()).show(
            _table(dataset, [row for row in found if row.dataset == dataset])
            for dataset in datasets
        )


def rows(outcomes: Sequence[RunOutcome]) -> list[Row]:
    """Runs, those that differ in their seed alone together; the most accurate first."""
    groups: dict[str, list[RunOutcome]] = {}
    for outcome in outcomes:
        settings = replace(outcome.settings, seed=0, threads=0)
        groups.setdefault(f"{outcome.dataset} {settings!r}", []).append(outcome)
    found = [_row(group) for group in groups.values()]
    return sorted(found, key=lambda row: (row.dataset, -row.accuracy.mean))


def _row(group: Sequence[RunOutcome]) -> Row:
    return Row(
        settings=group[0].settings,
        dataset=group[0].dataset,
        runs=len(group),
        tasks=len(group[0].tasks),
        accuracy=Spread.of([run.mean_accuracy for run in group]),
        learned=Spread.of([run.learned_accuracy for run in group]),
        forgetting=Spread.of([run.forgetting for run in group]),
        expansion=Spread.of([run.expansion for run in group]),
        megabytes=Spread.of([run.tasks[-1].bytes / 1e6 for run in group]),
        seconds=Spread.of([run.seconds for run in group]),
        unchanged=all(all(run.unchanged) for run in group),
    )


def _plain(row: Row) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        return vars(value) if isinstance(value, (Spread, RunSettings)) else value

    return {name: plain(value) for name, value in vars(row).items()}


def _table(dataset: str, rows: Sequence[Row]) -> ScreenTable:
    table = ScreenTable(dataset)
    table.add_column("method", "name")
    table.add_column("accuracy", "number")
    table.add_column("when learned", "number")
    table.add_column("forgotten", "number")
    for head, drop in (("weights", 0), ("MB", 3), ("time", 4), ("runs", 2)):
        table.add_column(head, "number", drop)
    table.add_column("unchanged", drop=1)
    for row in rows:
        table.add_row(
            label_of(row),
            percent(row.accuracy),
            percent(row.learned),
            percent(row.forgetting),
            f"{row.expansion.mean:.2f}x",
            f"{row.megabytes.mean:.2f}",
            duration(row.seconds.mean),
            str(row.runs),
            "yes" if row.unchanged else "no",
        )
    return table


def label_of(row: Row) -> str:
    """The method, with its chosen options."""
    options = ", ".join(f"{name}={value}" for name, value in row.settings.options.items())
    decided = " [decided on test data]" if row.settings.decide_on == "test" else ""
    return row.settings.method + (f" ({options})" if options else "") + decided


def percent(spread: Spread) -> str:
    """A share as percent, with the spread where there is one."""
    if spread.most - spread.least < 5e-5:
        return f"{100 * spread.mean:.1f}"
    return f"{100 * spread.mean:.1f} ({100 * spread.least:.1f} to {100 * spread.most:.1f})"


def duration(seconds: float) -> str:
    """A time that is easy to read."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
