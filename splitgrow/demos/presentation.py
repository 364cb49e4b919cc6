"""`splitgrow demo`: progress bars while it runs, then tables and the report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import track

from splitgrow.cli import consoles
from splitgrow.cli.settings import TINY, DemoSettings
from splitgrow.demos import datasets, tables
from splitgrow.demos.results import DemoEvent, is_measured, write_json
from splitgrow.demos.views import VIEWS, DemoView


def run_demo(  # noqa: PLR0913
    *,
    kind: str,
    data: Path | None,
    out: Path,
    limit: int | None,
    size: int | None,
    max_gb: float,
    threads: int | None,
    quiet: bool,
    **settings: Any,
) -> None:
    """Runs a demo on the data at `data`, prints the results and writes the report to `out`.

    Raises:
        click.UsageError: if the options do not go together.
        click.ClickException: if the data cannot be used, the training diverges, `out` cannot be
            written, or something that growth must not change was changed.
        KeyboardInterrupt: if the user stops it; it names the kept results.
    """
    if data is None and size is not None:
        raise click.UsageError("--size is for picture files: it needs --data")
    view = VIEWS[kind]
    live = consoles.progress(quiet=quiet)
    events: list[DemoEvent] = []
    try:
        out.mkdir(parents=True, exist_ok=True)  # before the work, so that none is done in vain
        dataset = datasets.load_dataset(
            data,
            seed=settings["seed"],
            limit=limit,
            size=size,
            track=_track(live),
            max_gb=max_gb,
        )
        images, side = len(dataset.x_train), max(dataset.size)
        chosen = DemoSettings.suited_to(images, side, phases=view.phases(dataset), **settings)
        live.print(tables.summary(dataset))
        with _threads(threads or _threads_for(dataset)):
            result = _run(view, dataset, chosen, live, events)
        write_json(out / "results.json", result)
        report = view.report(result, out)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_keep(events, out)) from None
    except FloatingPointError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot write the report: {error}") from error
    _print(view, result, report, quiet=quiet)
    broken = view.broken(result)
    if broken:
        raise click.ClickException(broken)


def _keep(events: Sequence[DemoEvent], out: Path) -> str:
    """Writes the measurements of an interrupted run, and says where."""
    if not is_measured(events):
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
    view: DemoView,
    dataset: datasets.Dataset,
    settings: DemoSettings,
    console: Console,
    events: list[DemoEvent],
) -> Any:
    """The finished run; `events` receives every event as it happens."""
    bars = view.bars(console, settings.epochs)

    def watch(event: DemoEvent) -> None:
        events.append(event)
        bars.show(event)

    with bars.progress:
        return view.module.run(dataset, settings, watch)


def _print(view: DemoView, result: Any, report: Path, *, quiet: bool) -> None:
    console = consoles.results()
    for part in () if quiet else view.details(result):
        console.print(part)
    for part in view.results(result):
        console.print(part)
    if not quiet:
        console.print(f"Report: {report}")
