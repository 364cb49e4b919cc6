"""Claim: an autoencoder that grows from 4x4 to 32x32 pixels, against one that begins with 32x32.

All have the same layers in the end, see images of the same data in batches of the same size, and
get the same number of multiply-adds (forward and backward passes, counted by torch). That is the
fair measure here: time on a machine that does other things as well comes out different each time.
Seconds are noted beside.

    python -m benchmarks.progressive --data PATH

PATH is a folder or zip of pictures, train/CLASS/*.jpg and test/CLASS/*.jpg. What has been measured
is kept in benchmarks/results/progressive.json after each run, also after Ctrl-C, and the runs that
are there already are not made again. --page writes the table of benchmarks/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from benchmarks.page import PAGE
from benchmarks.progressive.results import read_runs, show, write_page
from benchmarks.progressive.training import WAYS, Run, Settings, Training, reconstructions
from benchmarks.runs import FOLDER, write_runs
from splitgrow.demos import imagefolder
from splitgrow.demos.rawdata import Room

_SHOWN = 12  # pictures in a row of the grid


def load(path: Path, settings: Settings, track: Any) -> tuple[Tensor, Tensor]:
    """Training and test images (N, 3, size, size), from -1 to 1; the same whenever it is called."""
    raw = imagefolder.read(path, size=settings.size, track=track, room=Room())
    halves = []
    for split, count in ((raw.train, settings.images), (raw.test, settings.tested)):
        chosen = np.random.default_rng(0).permutation(len(split.labels))[:count]
        pixels = torch.from_numpy(np.ascontiguousarray(split.images(chosen)))
        halves.append(pixels.float() / 127.5 - 1)
    return halves[0], halves[1]


def write_grid(path: Path, rows: Sequence[Tensor]) -> None:
    """Pictures in rows, each pixel three by three."""
    lines = [torch.cat(list(row[:_SHOWN]), dim=-1) for row in rows]
    grid = torch.cat(lines, dim=-2).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    large = grid.repeat_interleave(3, -1).repeat_interleave(3, -2)
    Image.fromarray(large.permute(1, 2, 0).numpy()).save(path)


def measure(data: Path, settings: Settings, seeds: int, path: Path, console: Console) -> list[Run]:
    """Makes the runs that are missing and writes each as it is done; of seed 0 pictures too."""
    runs = read_runs(path, settings)
    done = {(run.way, run.seed) for run in runs}
    missing = [(way, seed) for seed in range(seeds) for way in WAYS if (way, seed) not in done]
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:

        def track(names: Sequence[str], label: str) -> Iterator[str]:
            reading = progress.add_task(label, total=len(names), note="")
            for name in names:
                yield name
                progress.advance(reading)

        images = load(data, settings, track)
        grid = [images[1][:_SHOWN]]
        task = progress.add_task("", total=len(missing) * settings.budget, note="")
        for index, (way, seed) in enumerate(missing):

            def watch(training: Training, before: float = index * settings.budget) -> None:
                size, last = training.model.resolution, training.curve[-1:] or [(0.0, math.nan)]
                progress.update(
                    task,
                    completed=before + training.spent,
                    description=f"{training.way}, seed {training.seed}: {size}x{size}",
                    note=f"error {last[0][1]:.4f}",
                )

            training = Training(way, seed, images, settings)
            runs.append(training.run(watch))
            write_runs(path, settings, runs)
            if seed == 0:
                grid.append(reconstructions(training.model, images[1][:_SHOWN]))
                if len(grid) == 1 + len(WAYS):
                    write_grid(path.with_suffix(".png"), grid)
    return runs


@click.command()
@click.option("--data", type=click.Path(exists=True, path_type=Path), help="Pictures to train on.")
@click.option(
    "--json", "path", type=click.Path(path_type=Path), default=FOLDER / "progressive.json"
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--budget",
    type=click.FloatRange(0.001),
    default=Settings.budget,
    show_default=True,
    help="Multiply-adds a run, in thousands of millions.",
)
@click.option("--images", type=click.IntRange(1), default=Settings.images, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--page", is_flag=True, help="Only write the table of benchmarks/README.md.")
def main(
    data: Path | None,
    path: Path,
    seeds: int,
    budget: float,
    images: int,
    threads: int,
    page: bool,  # noqa: FBT001
) -> None:
    """An autoencoder that grows in resolution, against one that does not."""
    if page:
        write_page(PAGE, path)
        return
    if data is None:
        raise click.UsageError("--data is missing: a folder or zip of pictures")
    torch.set_num_threads(threads)
    settings = replace(Settings(), budget=budget, images=images)
    console = Console()
    try:
        runs = measure(data, settings, seeds, path, console)
    except KeyboardInterrupt:
        console.print("Stopped; the runs that were finished are kept, and the next call goes on.")
        runs = read_runs(path, settings)
    show(console, runs)


if __name__ == "__main__":
    main()
