"""What the runs gave: as a table, and as a picture."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.language.training import WAYS, Run, Settings
from benchmarks.page import put_between
from benchmarks.runs import kept_runs, kept_settings, origin

mpl.use("Agg")
_MARKERS = "<!-- language table -->", "<!-- language end -->"
_COLOURS = {"large": "#4477aa", "grown": "#cc3311", "small": "#999933"}


def read_runs(path: Path, settings: Settings) -> list[Run]:
    """The runs that were made with these settings."""
    return [Run(**run) for run in kept_runs(path, settings)]


def best(runs: Sequence[Run], way: str) -> list[Run]:
    """The runs of a way with the learning rate whose mean loss is lowest, in order of seeds."""
    rates = sorted({run.rate for run in runs if run.way == way})
    of_rate = [[run for run in runs if (run.way, run.rate) == (way, rate)] for rate in rates]
    chosen = min(of_rate, key=lambda some: statistics.mean(run.loss for run in some), default=[])
    return sorted(chosen, key=lambda run: run.seed)


def share_to(run: Run, loss: float) -> float:
    """The share of the multiply-adds after which a run's loss is as low; infinite if never."""
    budget = run.curve[-1][0]
    return next((used / budget for used, reached in run.curve if reached <= loss), float("inf"))


def table(runs: Sequence[Run]) -> str:
    """The results as a table in Markdown."""
    lines = [
        "| way | loss in nats for a byte | multiply-adds to the large network's loss | seconds |",
        "|---|---|---|---|",
    ]
    large = {run.seed: run.loss for run in best(runs, "large")}
    for way in WAYS:
        if not (chosen := best(runs, way)):
            continue
        losses = [run.loss for run in chosen]
        shares = [share_to(run, large[run.seed]) for run in chosen if run.seed in large]
        told = ", ".join("never" if share > 1 else f"{share:.0%}" for share in shares)
        seconds = statistics.median(run.seconds for run in chosen)
        spread = f"{min(losses):.3f} to {max(losses):.3f}"
        lines.append(
            f"| {way}, rate {chosen[0].rate:g} | {statistics.mean(losses):.3f} ({spread}) | "
            f"{told} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def write_page(page: Path, path: Path) -> None:
    """Puts the table of the results between its markers.

    Raises:
        ValueError: If they are not there.
    """
    settings, runs = _kept(path)
    seeds = len({run.seed for run in runs})
    moved = max(run.moved for run in runs)
    text = (
        f"{origin(path)} Means of {seeds} seeds, with the least and the largest.\n"
        f"Each run has the multiply-adds of {settings.steps:,} steps of the large network. Growth "
        f"moved no output by more than {moved:.0e}.\n"
    )
    put_between(page, *_MARKERS, f"\n{text}\n{table(runs)}\n")


def write_picture(path: Path) -> None:
    """Draws validation loss over multiply-adds: each seed a thin line, the mean a thick one.

    The picture lies beside the file of the results.
    """
    _, runs = _kept(path)
    figure, axes = plt.subplots(figsize=(7, 4))
    for way in WAYS:
        chosen = best(runs, way)
        for run in chosen:
            axes.plot(*zip(*run.curve[1:], strict=True), color=_COLOURS[way], lw=0.6, alpha=0.6)
        points = zip(*(run.curve[1:] for run in chosen), strict=False)
        means = [tuple(map(statistics.mean, zip(*point, strict=True))) for point in points]
        if means:
            axes.plot(*zip(*means, strict=True), color=_COLOURS[way], lw=2, label=way)
    axes.set_xlabel("multiply-adds, billions")
    axes.set_ylabel("validation loss, nats for a byte")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path.with_suffix(".png"), dpi=110)
    plt.close(figure)


def _kept(path: Path) -> tuple[Settings, list[Run]]:
    settings = Settings(**kept_settings(path))
    return settings, read_runs(path, settings)
