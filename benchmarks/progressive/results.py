"""What the runs gave, kept in a file, and as a table."""

from __future__ import annotations

import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.progressive.training import WAYS, Run, Settings
from benchmarks.speed.machine import commit, machine
from benchmarks.speed.settings import Settings as Where

FOLDER = Path(__file__).parents[1] / "results"
PAGE = Path(__file__).parents[1] / "README.md"
_MARKERS = "<!-- progressive table -->", "<!-- progressive end -->"


def read_runs(path: Path, settings: Settings) -> list[Run]:
    """The runs that were made with these settings."""
    if not path.exists():
        return []
    content = json.loads(path.read_text())
    if content["settings"] != json.loads(json.dumps(asdict(settings))):
        return []
    return [
        Run(
            **{
                **run,
                "steps": tuple(run["steps"]),
                "curve": tuple(tuple(point) for point in run["curve"]),
            }
        )
        for run in content["runs"]
    ]


def write_runs(path: Path, settings: Settings, runs: Sequence[Run]) -> None:
    """Writes all runs, with where and of what they were made."""
    threads = torch.get_num_threads()
    where = Where(quick=False, device="cpu", rounds=1, threads=threads)
    content = {
        "settings": asdict(settings),
        "machine": {k: v for k, v in machine(where).items() if k != "rounds"},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "runs": [asdict(run) for run in runs],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


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
    content = json.loads(path.read_text())
    runs = read_runs(path, Settings(**_tuples(content["settings"])))
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows_of(runs)]
    where, settings = content["machine"], content["settings"]
    seeds = len({run.seed for run in runs})
    text = (
        f"On {where['cpu']}, {where['threads']} thread, torch {where['torch']}; {content['date']}, "
        f"{content['commit']}. Medians of {seeds} seeds, with the least and the largest;\n"
        f"{settings['budget']:g} thousand million multiply-adds a run, {settings['images']:,} "
        f"training and {settings['tested']:,} test images.\n"
    )
    before, begin, rest = page.read_text().partition(_MARKERS[0])
    _, end, after = rest.partition(_MARKERS[1])
    if not begin or not end:
        raise ValueError(f"{page} has no {_MARKERS[0]} and {_MARKERS[1]}")
    table = "\n".join(lines)
    page.write_text(f"{before}{begin}\n\n{text}\n{table}\n{end}{after}")


def _tuples(content: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(v) if isinstance(v, list) else v for key, v in content.items()}


def show(console: Console, runs: Sequence[Run]) -> None:
    """Prints the table."""
    table = Table(*HEAD)
    for row in rows_of(runs):
        table.add_row(*row)
    console.print(table)
