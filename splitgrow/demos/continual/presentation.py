"""`splitgrow continual`: progress bars while it runs, then a table and the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import track

from splitgrow.cli import consoles
from splitgrow.cli.continual_settings import RunSettings
from splitgrow.demos import datasets, tables
from splitgrow.demos.continual.comparison import duration
from splitgrow.demos.continual.outcome import OutcomeError, RunOutcome
from splitgrow.demos.continual.report import write_report
from splitgrow.demos.continual.running import ContinualRun
from splitgrow.demos.continual.watching import RunWatch
from splitgrow.demos.tasksets import tasks_of


def run_continual(
    *, data: Path | None, size: int | None, max_gb: float, out: Path, quiet: bool, **chosen: Any
) -> None:
    """Runs a method on the data at `data`, prints the results and writes all of them to `out`.

    Raises:
        click.UsageError: If the options do not go together.
        click.ClickException: If the data cannot be used, the training diverges, or `out` cannot be
            written or holds another run.
        KeyboardInterrupt: If the user stops it, saying how to go on.
    """
    if data is None and size is not None:
        raise click.UsageError("--size is for picture files: it needs --data")
    live = consoles.progress(quiet=quiet)
    settings = RunSettings(data="" if data is None else str(data), **chosen)
    torch.set_num_threads(settings.threads)
    try:
        out.mkdir(parents=True, exist_ok=True)  # before the work, so that none is done in vain
        dataset = datasets.load_dataset(
            data,
            seed=settings.seed,
            size=size,
            track=lambda names, what: track(names, what, console=live, transient=True),
            max_gb=max_gb,
        )
        live.print(tables.summary(dataset))
        outcome = _run(settings, dataset, out, live)
        report = write_report(outcome, out)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"the tasks so far are in {out}; the same command goes on"
        ) from None
    except (OutcomeError, FloatingPointError, TypeError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot write to {out}: {error}") from error
    _print(outcome, report, quiet=quiet)


def _run(settings: RunSettings, dataset: datasets.Dataset, out: Path, live: Console) -> RunOutcome:
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
    done = run.resume()
    if done:
        live.print(f"{done} of {len(tasks)} tasks are learned already")
    watch.resume(done)
    with watch.progress:
        return run.finish()


def _print(outcome: RunOutcome, report: Path, *, quiet: bool) -> None:
    console = consoles.results()
    unchanged = sum(outcome.unchanged)
    console.print(
        f"{outcome.settings.method}: {outcome.mean_accuracy:.2%} mean test accuracy of "
        f"{len(outcome.tasks)} tasks ({outcome.learned_accuracy:.2%} when learned), "
        f"{outcome.expansion:.2f} times the weights of one network, "
        f"{outcome.tasks[-1].bytes / 1e6:.2f} MB, {duration(outcome.seconds)}; "
        f"{unchanged} of {len(outcome.tasks)} tasks unchanged bit for bit",
        soft_wrap=True,
    )
    if not quiet:
        console.print(f"Report: {report}")
