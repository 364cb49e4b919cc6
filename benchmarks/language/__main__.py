"""Claim: a small GPT that grows in stream, heads, MLPs and depth, against a large one.

All see text of the same files in batches of the same size, and get the same number of multiply-adds
(forward and backward passes, counted by torch). Each way is trained with each learning rate, and
the best by the mean validation loss counts.

    python -m benchmarks.language

The text is the source code of Python's standard library. Each run is kept in
benchmarks/results/language.json when it is done, also after Ctrl-C, and is not made again. --page
writes the table of benchmarks/README.md and its picture.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click
import matplotlib as mpl
import torch
from matplotlib import pyplot as plt
from rich.console import Console
from rich.progress import Progress

from benchmarks.language.training import WAYS, Run, Settings, Training, text
from benchmarks.speed.machine import commit, machine
from benchmarks.speed.settings import Settings as Where

mpl.use("Agg")
FOLDER = Path(__file__).parents[1] / "results"
PAGE = Path(__file__).parents[1] / "README.md"
_MARKERS = "<!-- language table -->", "<!-- language end -->"
_COLOURS = {"large": "#4477aa", "grown": "#cc3311", "small": "#999933"}


def read_runs(path: Path, settings: Settings) -> list[Run]:
    """The runs that were made with these settings."""
    content = json.loads(path.read_text()) if path.exists() else {}
    if content.get("settings") != json.loads(json.dumps(asdict(settings))):
        return []
    return [
        Run(**{**run, "curve": tuple(tuple(point) for point in run["curve"])})
        for run in content["runs"]
    ]


def write_runs(path: Path, settings: Settings, runs: Sequence[Run]) -> None:
    """Writes all runs, with where and of what they were made."""
    where = Where(quick=False, device="cpu", rounds=1, threads=torch.get_num_threads())
    content = {
        "settings": asdict(settings),
        "machine": {k: v for k, v in machine(where).items() if k != "rounds"},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "runs": [asdict(run) for run in runs],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def best(runs: Sequence[Run], way: str) -> list[Run]:
    """The runs of a way with the learning rate whose mean loss is lowest, in order of seeds."""
    rates = sorted({run.rate for run in runs if run.way == way})
    of_rate = [[run for run in runs if (run.way, run.rate) == (way, rate)] for rate in rates]
    chosen = min(of_rate, key=lambda some: statistics.mean(run.loss for run in some))
    return sorted(chosen, key=lambda run: run.seed)


def share_to(run: Run, loss: float) -> float:
    """The share of the multiply-adds after which a run's loss is as low; above 1 if never."""
    budget = run.curve[-1][0]
    return next((used / budget for used, reached in run.curve if reached <= loss), 1.01)


def table(runs: Sequence[Run]) -> str:
    """The results as a table in Markdown."""
    lines = [
        "| way | loss in nats for a byte | multiply-adds to the large network's loss | seconds |",
        "|---|---|---|---|",
    ]
    large = {run.seed: run.loss for run in best(runs, "large")}
    for way in WAYS:
        chosen = best(runs, way)
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


def write_picture(path: Path, runs: Sequence[Run]) -> None:
    """Validation loss over multiply-adds: each seed a thin line, the mean a thick one."""
    figure, axes = plt.subplots(figsize=(7, 4))
    for way in WAYS:
        chosen = best(runs, way)
        for run in chosen:
            axes.plot(*zip(*run.curve[1:], strict=True), color=_COLOURS[way], lw=0.6, alpha=0.6)
        points = zip(*(run.curve[1:] for run in chosen), strict=False)
        means = [tuple(map(statistics.mean, zip(*point, strict=True))) for point in points]
        axes.plot(*zip(*means, strict=True), color=_COLOURS[way], lw=2, label=way)
    axes.set_xlabel("multiply-adds, billions")
    axes.set_ylabel("validation loss, nats for a byte")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def write_page(runs: Sequence[Run], page: Path = PAGE) -> None:
    """Writes the table between its markers."""
    before, rest = page.read_text().split(_MARKERS[0])
    _, behind = rest.split(_MARKERS[1])
    page.write_text(f"{before}{_MARKERS[0]}\n{table(runs)}\n{_MARKERS[1]}{behind}")


@click.command()
@click.option("--seeds", default=3, show_default=True, help="How many seeds.")
@click.option("--steps", default=Settings.steps, show_default=True, help="Of the large network.")
@click.option("--page", is_flag=True, help="Write the table and the picture; make no run.")
def main(*, seeds: int, steps: int, page: bool) -> None:
    """Trains a small GPT that grows and a large one on the same text, and compares them."""
    console, settings = Console(), Settings(steps=steps)
    path = FOLDER / "language.json"
    runs = read_runs(path, settings)
    if not page:
        data = text()
        known = {(run.way, run.seed, run.rate) for run in runs}
        for seed in range(seeds):
            for way in WAYS:
                for rate in settings.rates:
                    if (way, seed, rate) in known:
                        continue
                    with Progress(console=console, transient=True) as progress:
                        task = progress.add_task(f"{way}, seed {seed}, rate {rate:g}", total=None)
                        training = Training(
                            way, seed, rate, settings, data, lambda p=progress, t=task: p.advance(t)
                        )
                        runs.append(training.run())
                    write_runs(path, settings, runs)
                    console.print(f"{way} {seed} {rate:g}: {runs[-1].loss:.3f}")
    if runs:
        console.print(table(runs))
    if page:
        write_page(runs)
        write_picture(FOLDER / "language.png", runs)


if __name__ == "__main__":
    main()
