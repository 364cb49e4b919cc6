"""Shrinking networks, beside torch-pruning.

python -m benchmarks.pruning --library torchvision|timm|transformers
python -m benchmarks.pruning --part times
python -m benchmarks.pruning --part accuracy --data cifar10=PATH
python -m benchmarks.pruning --page

Each result is kept in the folder of --runs as it is made; a stopped run goes on where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from benchmarks.coverage.catalogues import LIBRARIES, catalogue
from benchmarks.coverage.results import Results, matching
from benchmarks.coverage.running import Limits, check_all
from benchmarks.coverage.sizes import sizes_of, smallest_of_each
from benchmarks.pruning.records import FOLDER, add, finished, path_of, read, tidied
from benchmarks.pruning.trying import examine

console = Console()


@click.command()
@click.option("--runs", type=click.Path(path_type=Path), default=FOLDER, help="Their folder.")
@click.option("--part", type=click.Choice(["coverage", "times", "accuracy"]), default="coverage")
@click.option("--library", type=click.Choice(LIBRARIES), help="Coverage: whose models.")
@click.option("--only", metavar="GLOB", help="Only what fits, also if it is known.")
@click.option("--again-failed", is_flag=True, help="Coverage: also models where ours fails.")
@click.option("--timeout", default=300.0, show_default=True, help="Coverage: seconds for ours.")
@click.option("--peer-timeout", default=150.0, show_default=True, help="The same for the peer.")
@click.option("--data", type=click.Path(path_type=Path, exists=True), help="Accuracy: its data.")
@click.option("--budget", type=float, default=1.0, show_default=True, help="Accuracy: its share.")
@click.option("--page", is_flag=True, help="Write PRUNING.md from the results, and stop.")
def main(runs: Path, part: str, library: str | None, *, page: bool, **options: Any) -> None:
    """Prunes models, or writes the page about what was found."""
    torch.set_num_threads(1)
    if page:
        from benchmarks.pruning.page import write_page  # noqa: PLC0415

        console.print(f"wrote {write_page(runs)}")
    elif part == "times":
        from benchmarks.pruning.times import measure  # noqa: PLC0415

        measure(runs, options["only"], console)
    elif part == "accuracy":
        from benchmarks.pruning.accuracy import run_all  # noqa: PLC0415

        run_all(runs, options["data"], options["only"], options["budget"], console)
    elif library is None:
        raise click.UsageError("give --library, --part or --page")
    else:
        cover(runs, library, options)


def chosen(library: str, options: dict[str, Any], runs: Path) -> list[str]:
    """The models that have to run, the smallest first; of timm the smallest of each family."""
    listed: Any = catalogue(library)
    names = matching(listed.names(), options["only"])
    # Counting takes long; the coverage of growth has it, but not of models that it left out.
    counted = {name: found["parameters"] for name, found in Results(library).models.items()}
    if library == "timm" and counted:
        names = [name for name in names if name in counted]
    rest = [name for name in names if name not in counted]
    sizes = {**counted, **sizes_of(library, rest, runs)}
    if library == "timm" and options["only"] is None:
        names = smallest_of_each(names, sizes, {name: listed.family(name) for name in names})
    known = read(path_of(library, runs))
    again = options["only"] is not None
    due = [
        name
        for name in names
        if again
        or name not in known
        or (options["again_failed"] and known[name]["ours"]["status"] != "works")
    ]
    return sorted(due, key=lambda name: (sizes[name], name))


def cover(runs: Path, library: str, options: dict[str, Any]) -> None:
    """Prunes a library's models and keeps every result."""
    path, names = path_of(library, runs), chosen(library, options, runs)
    limits = Limits(options["timeout"], options["peer_timeout"], 1)
    for number, record in enumerate(check_all(library, names, limits, examine), 1):
        kept = finished(record)
        add(path, kept)
        told = {who: kept[who] for who in ("ours", "peer")}
        text = "; ".join(
            f"{who} {found['status']} {found['pruned']}/{kept['layers']} {found['reason'][:150]}"
            for who, found in told.items()
        )
        console.print(
            f"{number} of {len(names)} {kept['name']}: {text}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    tidied(path)


if __name__ == "__main__":
    main()
