"""`splitgrow continual`: progress bars while it runs, then a table and the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from splitgrow.cli import consoles
from splitgrow.cli.continual_settings import RunSettings
from splitgrow.cli.screen_tables import ScreenTable
from splitgrow.cli.showing import Shown
from splitgrow.continual.learner import FILE
from splitgrow.demos import datasets, tables
from splitgrow.demos.continual.comparison import duration
from splitgrow.demos.continual.method_options import checked_options
from splitgrow.demos.continual.outcome import OutcomeError, RunOutcome, outcome_json
from splitgrow.demos.continual.report import write_report
from splitgrow.demos.continual.running import ContinualRun
from splitgrow.demos.continual.watching import RunWatch
from splitgrow.demos.presentation import reading_bar
from splitgrow.demos.tasksets import tasks_of


def run_continual(  # noqa: PLR0913
    *,
    data: Path | None,
    size: int | None,
    max_gb: float,
    out: Path,
    shown: Shown,
    split: str | None,
    tasks: int | None,
    checkpoint: Path | None,
    **chosen: Any,
) -> None:
    """Runs a method on the data at `data`, prints the results and writes all of them to `out`.

    Raises:
        click.UsageError: If the options do not go together.
        click.ClickException: If the data cannot be used, the training diverges, or `out` cannot be
            written or holds another run.
        KeyboardInterrupt: If the user stops it, saying what is kept and how to go on.
    """
    if data is None and size is not None:
        raise click.UsageError("--size is for picture files: it needs --data")
    live = consoles.progress(quiet=shown.quiet)
    torch.set_num_threads(chosen["threads"])
    begun: list[ContinualRun] = []
    try:
        checked_options(chosen["method"], chosen["options"])
        dataset = datasets.load_dataset(
            data,
            seed=chosen["seed"],
            size=size,
            track=reading_bar(live),
            max_gb=max_gb,
        )
        live.print(tables.summary(dataset))
        split = split or ("superclasses" if dataset.folders else RunSettings.split)
        usual = 0 if split == "superclasses" else RunSettings.tasks
        settings = RunSettings(
            data="" if data is None else str(data),
            split=split,
            tasks=usual if tasks is None else tasks,
            checkpoint="" if checkpoint is None else str(checkpoint),
            **chosen,
        )
        outcome = _run(settings, dataset, out, live, begun)
        report = write_report(outcome, out)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(begun, out)) from None
    except (OutcomeError, FloatingPointError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot write to {out}: {error}") from error
    if shown.as_json:
        shown.echo_json(outcome_json(outcome))
    else:
        shown.show((_tasks(outcome), _told(outcome)), report)


def _kept(begun: Sequence[ContinualRun], out: Path) -> str:
    """What an interrupted run has kept, and how to go on."""
    done = begun[0].done if begun else 0
    if done:
        tasks = len(begun[0].tasks)
        return f"{done} of {tasks} tasks are learned and kept in {out}; the same command goes on"
    if (out / FILE).exists():
        return f"no task is learned yet; what began is in {out}, and the same command goes on"
    return "no task is learned yet, and nothing is kept"


def _run(
    settings: RunSettings,
    dataset: datasets.Dataset,
    out: Path,
    live: Console,
    begun: list[ContinualRun],
) -> RunOutcome:
    tasks = tasks_of(
        dataset,
        settings.split,
        settings.tasks or None,
        seed=settings.seed,
        shuffled=settings.shuffled,
        limit=settings.limit or None,
    )
    watch = RunWatch(live, len(tasks))
    run = ContinualRun(settings, dataset, tasks, out, watch)
    out.mkdir(parents=True, exist_ok=True)  # before the work, so that none is done in vain
    begun.append(run)
    done = run.resume()
    if done:
        live.print(f"{done} of {len(tasks)} tasks are learned already")
    watch.resume(done)
    with watch.progress:
        return run.finish()


def _tasks(outcome: RunOutcome) -> ScreenTable:
    """The tasks in the order in which they were learned."""
    table = ScreenTable(f"{outcome.dataset}: tasks")
    table.add_column("task", "name")
    table.add_column("classes", "number", drop=1)
    for name in ("when learned", "in the end"):
        table.add_column(name, "number")
    table.add_column("weights used", "number", drop=3)
    table.add_column("time", "number", drop=2)
    for task, row, last in zip(outcome.tasks, outcome.accuracy, outcome.accuracy[-1], strict=True):
        table.add_row(
            task.name,
            str(task.classes),
            f"{row[-1]:.2%}",
            f"{last:.2%}",
            f"{task.weights:,}",
            duration(task.seconds),
        )
    return table


def _told(outcome: RunOutcome) -> str:
    unchanged = sum(outcome.unchanged)
    return (
        f"{outcome.settings.method}: {outcome.mean_accuracy:.2%} mean test accuracy of "
        f"{len(outcome.tasks)} tasks ({outcome.learned_accuracy:.2%} when learned), "
        f"{outcome.expansion:.2f} times the weights of one network, "
        f"{outcome.tasks[-1].bytes / 1e6:.2f} MB, {duration(outcome.seconds)}; "
        f"{unchanged} of {len(outcome.tasks)} tasks unchanged bit for bit"
    )
