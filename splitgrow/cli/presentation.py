"""`splitgrow demo`: progress bars while it runs, then tables and the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    track,
)

from splitgrow.cli import consoles, datasets, tables
from splitgrow.cli.demo import run
from splitgrow.cli.report import write_report
from splitgrow.cli.results import Evaluation, Event, Growth, Phase, Result, Step, write_json
from splitgrow.cli.settings import TINY, DemoSettings


def demo(
    *,
    data: Path | None,
    out: Path,
    limit: int | None,
    size: int | None,
    threads: int | None,
    quiet: bool,
    seed: int,
    **settings: Any,
) -> None:
    """Runs the demo on the data at `data`, prints what it found and writes the report to `out`.

    Raises:
        click.UsageError: if the options do not go together.
        click.ClickException: if the data cannot be used, the training diverges, `out` cannot be
            written, or an old network did not come back bit for bit.
        KeyboardInterrupt: if the user stops it, saying what was kept.
    """
    if data is None and size is not None:
        raise click.UsageError("--size is for picture files: it needs --data")
    live = consoles.progress(quiet=quiet)
    events: list[Event] = []
    try:
        out.mkdir(parents=True, exist_ok=True)  # before the work, so that none is done in vain
        dataset = datasets.load(data, seed=seed, limit=limit, size=size, track=_track(live))
        images, side = len(dataset.x_train), max(dataset.size)
        chosen = DemoSettings.suited_to(images, side, seed=seed, **settings)
        live.print(tables.summary(dataset))
        with _threads(threads or _threads_for(dataset)):
            result = _run(dataset, chosen, live, events)
        write_json(out / "results.json", result)
        report = write_report(result, out)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_keep(events, out)) from None
    except FloatingPointError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot write the report: {error}") from error
    _print(result, report, quiet=quiet)
    if not all(recovery.exact for recovery in result.recoveries):
        raise click.ClickException("an old network was not recovered bit for bit")


def _keep(events: Sequence[Event], out: Path) -> str:
    """Writes what a run had measured when it was interrupted, and says where."""
    if not any(isinstance(event, Step) for event in events):
        return "nothing was measured yet"
    kept = out / "interrupted.json"
    write_json(kept, events)
    return f"what was measured until then is in {kept}"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _threads_for(dataset: datasets.Dataset) -> int:
    """One for small images, whose layers end before a second thread has woken up, else all.

    On cores that are busy with other work, threads that wait for each other within such short
    layers make a step ten times as long.
    """
    return 1 if max(dataset.size) < TINY else torch.get_num_threads()


def _track(console: Console) -> Callable[[Sequence[str], str], Iterable[str]]:
    return lambda names, what: track(names, what, console=console, transient=True)


def _run(
    dataset: datasets.Dataset, settings: DemoSettings, console: Console, events: list[Event]
) -> Result:
    """The finished run; `events` receives every event as it happens."""
    with _bars(console) as progress:
        bars = _Bars(progress, settings.epochs)

        def watch(event: Event) -> None:
            events.append(event)
            bars.show(event)

        return run(dataset, settings, watch)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("generation {task.fields[generation]}"),
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(bar_width=12),  # all fits into 80 characters
        TextColumn("loss {task.fields[loss]:.3f}"),
        TextColumn("train {task.fields[train]:.1%}"),
        TextColumn("test {task.fields[test]:.1%}"),
        TimeRemainingColumn(),
        console=console,
    )


class _Bars:
    """One progress bar for each phase; loss and accuracy on it are smoothed over the steps."""

    _SMOOTHING = 0.1

    def __init__(self, progress: Progress, epochs: int) -> None:
        self._progress, self._epochs = progress, epochs
        self._task = TaskID(0)
        self._loss = self._train = self._test = 0.0

    def show(self, event: Event) -> None:
        """Brings the bars up to date with what happened."""
        if isinstance(event, Phase):
            self._task = self._progress.add_task(
                "",
                total=event.steps,
                generation=event.generation,
                epochs=self._epochs,
                epoch=1,
                loss=self._loss,
                train=self._train,
                test=self._test,
            )
        elif isinstance(event, Step):
            share = 1.0 if event.step == 1 else self._SMOOTHING
            self._loss += share * (event.loss - self._loss)
            self._train += share * (event.accuracy - self._train)
            self._progress.update(
                self._task, advance=1, epoch=event.epoch, loss=self._loss, train=self._train
            )
        elif isinstance(event, Evaluation):
            self._test = event.accuracy
            self._progress.update(self._task, test=event.accuracy)
        elif isinstance(event, Growth):
            self._progress.console.print(tables.growth(event))


def _print(result: Result, report: Path, *, quiet: bool) -> None:
    console = consoles.results()
    if not quiet:
        console.print(tables.edits(result.growths))
        console.print(tables.recoveries(result.recoveries))
    console.print(tables.measurements(result))
    console.print(tables.fusion(result))
    if not quiet:
        console.print(f"Report: {report}")
