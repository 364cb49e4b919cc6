"""How much of torchvision, timm and transformers grows, each model checked against the laws.

python -m benchmarks.coverage --library torchvision|timm|transformers
python -m benchmarks.coverage --page
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.coverage.catalogues import LIBRARIES, catalogue
from benchmarks.coverage.page import write_page
from benchmarks.coverage.results import DONE, FOLDER, Results, matching, to_do
from benchmarks.coverage.running import Limits, check_all
from benchmarks.coverage.sizes import sizes_of, smallest_of_each

PAGE = Path(__file__).parents[2] / "COVERAGE.md"

console = Console()


@click.command()
@click.option("--library", type=click.Choice(LIBRARIES), help="Whose models to check.")
@click.option("--page", is_flag=True, help="Write COVERAGE.md from the results, and stop.")
@click.option("--only", metavar="GLOB", help="Only models whose name fits; also if known.")
@click.option("--families", is_flag=True, help="timm: only the smallest model of each family.")
@click.option("--cnn", is_flag=True, help="timm: only convolutional classifiers.")
@click.option("--limit", type=click.IntRange(1), help="At most so many models.")
@click.option("--again", is_flag=True, help="Also models that have a result.")
@click.option("--again-failed", is_flag=True, help="Also models that are not verified.")
@click.option("--timeout", default=300.0, show_default=True, help="Seconds for each model.")
@click.option("--peer-timeout", default=120.0, show_default=True, help="Seconds for the peer.")
@click.option("--no-peer", is_flag=True, help="Leave torch-pruning out.")
@click.option("--jobs", default=1, show_default=True, help="Models that run at a time.")
@click.option("--results", type=click.Path(path_type=Path), default=FOLDER, help="Their folder.")
def main(library: str | None, *, page: bool, results: Path, **options: Any) -> None:
    """Checks a library's models, or writes the page about what was found."""
    if page:
        write_page(PAGE, results)
        console.print(f"wrote {PAGE}")
        return
    if library is None:
        raise click.UsageError("give --library or --page")
    known = Results(library, results)
    known.version, known.totals = catalogue(library).version(), catalogue(library).totals()
    names = to_do(
        chosen(library, options, results),
        known.models,
        again=options["again"] or options["only"] is not None,
        again_failed=options["again_failed"],
    )[: options["limit"]]
    peer_seconds = 0.0 if options["no_peer"] else options["peer_timeout"]
    run(known, names, Limits(options["timeout"], peer_seconds, options["jobs"]))


def chosen(library: str, options: dict[str, Any], folder: Path) -> list[str]:
    """The models that the options name, the smallest first."""
    listed = catalogue(library)
    names = matching(listed.names(), options["only"])
    if library != "timm" and (options["cnn"] or options["families"]):
        raise click.UsageError("--cnn and --families are for timm")
    timm = cast(ModuleType, listed)
    if options["cnn"]:
        names = [name for name in names if timm.is_cnn_classifier(name)]
    with progress("counting parameters", len(names)) as step:
        sizes = sizes_of(library, names, folder, step)
    if options["families"]:
        return smallest_of_each(names, sizes, {name: timm.family(name) for name in names})
    return sorted(names, key=lambda name: (sizes[name], name))


def run(known: Results, names: list[str], limits: Limits) -> None:
    """Checks models one after the other and keeps every result."""
    counts: dict[str, int] = {}
    stopped = False
    try:
        with progress(known.library, len(names)) as step:
            for record in check_all(known.library, names, limits):
                known.add(record)
                counts[record["status"]] = counts.get(record["status"], 0) + 1
                if record["status"] not in DONE:
                    console.print(
                        f"{record['name']}: {record['status']}: {record['reason']}",
                        markup=False,
                        highlight=False,
                    )
                step()
    except KeyboardInterrupt:
        console.print("stopped; what is done is kept. The same command goes on from here.")
        console.print("(after --only, --again or --again-failed: without that option)")
        stopped = True
    summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    console.print(f"{known.library}: {summary or 'nothing to do'}; results in {known.path}")
    if stopped:
        raise SystemExit(130)


@contextmanager
def progress(what: str, total: int) -> Iterator[Any]:
    """A bar with the time left; yields what has to be called after each step."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


if __name__ == "__main__":
    main()
