"""What the runs gave, kept in a file, and as a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.page import put_between
from benchmarks.progressive.training import WAYS, Run, Settings
from benchmarks.runs import kept_runs, kept_settings, origin

_MARKERS = "<!-- progressive table -->", "<!-- progressive end -->"


def read_runs(path: Path, settings: Settings) -> list[Run]:
    """The runs that were made with these settings."""
    return [Run(**run) for run in kept_runs(path, settings)]


def rows_of(runs: Sequence[Run]) -> Iterator[tuple[str, ...]]:
    """A row for each way, and for the ratio of its errors to those of the first."""
    found: dict[str, dict[int, Run]] = {way: {} for way in WAYS}
    for run in runs:
        found[run.way][run.seed] = run
    for way, by_seed in found.items():
        if by_seed:
            errors = [run.error for run in by_seed.values()]
            noise = [10 * math.log10(1 / error) for error in errors]
            steps = next(iter(by_seed.values())).steps
            yield (
                way,
                _spread(errors, 5),
                f"{_spread(noise, 2)} dB",
                " + ".join(f"{count:,}" for count in steps if count),
                f"{statistics.median(run.seconds for run in by_seed.values()):.0f} s",
            )
    for way in WAYS[1:]:
        both = [seed for seed in found[WAYS[0]] if seed in found[way]]
        if both:
            ratios = [found[way][seed].error / found[WAYS[0]][seed].error for seed in both]
            yield f"{way} / {WAYS[0]}", _spread(ratios, 2), "", "", ""


def _spread(values: Sequence[float], digits: int) -> str:
    middle = statistics.median(values)
    return f"{middle:.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


HEAD = ("network", "test error", "PSNR", "steps, from coarse to fine", "training")


def write_page(page: Path, path: Path) -> None:
    """Puts the table of the results between its markers.

    Raises:
        ValueError: If they are not there.
    """
    settings = Settings(**kept_settings(path))
    runs = read_runs(path, settings)
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows_of(runs)]
    seeds = len({run.seed for run in runs})
    text = (
        f"{origin(path)} Medians of {seeds} seeds, with the least and the largest;\n"
        f"{settings.budget:g} thousand million multiply-adds a run, {settings.images:,} "
        f"training and {settings.tested:,} test images.\n"
    )
    table = "\n".join(lines)
    put_between(page, *_MARKERS, f"\n{text}\n{table}\n")


def show(console: Console, runs: Sequence[Run]) -> None:
    """Prints the table."""
    table = Table(*HEAD)
    for row in rows_of(runs):
        table.add_row(*row)
    console.print(table)
