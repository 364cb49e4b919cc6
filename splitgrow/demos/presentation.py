"""`splitgrow demo` and `splitgrow grow`: progress bars, then tables and the report."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.progress import track

from splitgrow.cli import consoles
from splitgrow.cli.grow_settings import GrowSettings
from splitgrow.cli.settings import TINY
from splitgrow.cli.showing import Shown
from splitgrow.demos import arm_tables, datasets, growing, tables
from splitgrow.demos.chosen_network import MakeNetwork, network_maker
from splitgrow.demos.results import DemoEvent, is_measured, json_of, plain, write_json
from splitgrow.demos.views import VIEWS, DemoView, grow_view
from splitgrow.grower.planned_growth import shortened
from splitgrow.growth.initializers import chosen_initializer


def run_demo(*, kind: str, **options: Any) -> None:
    """Runs a demo; see `show`."""
    show(VIEWS[kind], **options)


def run_grow(*, network: str, plan: bool, init: str, shown: Shown, **options: Any) -> None:
    """Trains the network of a target that grows, and those that it is compared with; see `show`.

    With `plan` it prints the plan of the growths instead.

    Raises:
        click.BadParameter: if there is no such initializer.
        click.ClickException: if there is no such network.
    """
    make = network_maker(network, options["seed"])  # before the data; it may add an initializer
    try:
        chosen_initializer(init)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--init") from error
    view = grow_view(make)
    preview = (lambda *given: _print_plan(make, shown, *given)) if plan else None
    show(view, preview=preview, network=network, init=init, shown=shown, **options)


def _print_plan(
    make: MakeNetwork, shown: Shown, dataset: datasets.Dataset, settings: GrowSettings
) -> None:
    with torch.random.fork_rng(devices=[]):
        study = growing.prepare_arms(make, dataset, settings, lambda _: None)
    if shown.as_json:
        macs = study.course.macs
        shown.echo_json(json.dumps({"version": 1, "macs": macs, "plan": plain(study.plan)}))
        return
    last = (
        f"\nThe training takes {shortened(study.course.macs)} multiply-adds, as"
        f" {arm_tables.epochs(settings)}; each of the networks has as many."
    )
    shown.show((*arm_tables.plan_parts(study.plan), last))


def show(  # noqa: PLR0913
    view: DemoView,
    *,
    data: Path | None,
    out: Path,
    limit: int | None,
    size: int | None,
    max_gb: float,
    threads: int | None,
    shown: Shown,
    preview: Callable[[datasets.Dataset, Any], None] | None = None,
    **settings: Any,
) -> None:
    """Runs a demo on the data at `data`, prints the results and writes the report to `out`.

    With a `preview`, that is called with the data and the settings instead, and nothing is written.

    Raises:
        click.UsageError: if the options do not go together.
        click.ClickException: if the data cannot be used, the training diverges, `out` cannot be
            written, or something that growth must not change was changed.
        KeyboardInterrupt: if the user stops it; it names the kept results.
    """
    if data is None and size is not None:
        raise click.UsageError("--size is for picture files: it needs --data")
    live = consoles.progress(quiet=shown.quiet)
    events: list[DemoEvent] = []
    try:
        if preview is None:
            out.mkdir(parents=True, exist_ok=True)  # before the work, so that none is done in vain
        dataset = datasets.load_dataset(
            data,
            seed=settings["seed"],
            limit=limit,
            size=size,
            track=reading_bar(live),
            max_gb=max_gb,
        )
        chosen = view.settings(dataset, settings)
        live.print(tables.summary(dataset))
        if preview is not None:
            preview(dataset, chosen)
            return
        with threads_of(dataset, threads):
            result = _run(view, dataset, chosen, live, events)
        write_json(out / "results.json", result)
        report = view.report(result, out)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_keep(events, out)) from None
    except FloatingPointError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"cannot write the report: {error}") from error
    if shown.as_json:
        shown.echo_json(json_of(result))
    else:
        shown.show((*view.details(result), *view.results(result)), report)
    broken = view.broken(result)
    if broken:
        raise click.ClickException(broken)


def _keep(events: Sequence[DemoEvent], out: Path) -> str:
    """Writes the measurements of an interrupted run, and says where."""
    if not is_measured(events):
        return "nothing was measured yet, and nothing is kept"
    kept = out / "interrupted.json"
    write_json(kept, events)
    return f"what was measured until then is in {kept}; the same command begins anew"


@contextmanager
def threads_of(dataset: datasets.Dataset, count: int | None) -> Iterator[None]:
    """Works with so many CPU threads, or with those that suit the images."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or _threads_for(dataset))
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


def reading_bar(console: Console) -> Callable[[Sequence[str], str], Iterable[str]]:
    """Shows the progress of reading picture files."""
    return lambda names, what: track(names, what, console=console, transient=True)


def _run(
    view: DemoView,
    dataset: datasets.Dataset,
    settings: Any,
    console: Console,
    events: list[DemoEvent],
) -> Any:
    """The finished run; `events` receives every event as it happens."""
    bars = view.bars(console, settings)

    def watch(event: DemoEvent) -> None:
        events.append(event)
        bars.show(event)

    with bars.progress:
        return view.run(dataset, settings, watch)
