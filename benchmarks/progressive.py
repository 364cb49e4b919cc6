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

import json
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import splitgrow
from benchmarks.speed.machine import commit, machine
from benchmarks.speed.settings import Settings as Where
from splitgrow.cli import imagefolder

FOLDER = Path(__file__).parent / "results"
PAGE = Path(__file__).parent / "README.md"
WAYS = ("from the start", "grown", "grown, old adapters held")
_MARKERS = "<!-- progressive table -->", "<!-- progressive end -->"
_SHOWN = 12  # pictures in a row of the grid


@dataclass(frozen=True)
class Settings:
    """What is trained and for how long.

    Attributes:
        widths: The channels at each resolution, from coarse to fine.
        latent: The channels of the code, at the lowest resolution.
        start: The lowest resolution.
        shares: The shares of the multiply-adds at each resolution, of the network that grows.
        fade: The share of these during which the new stage fades in.
        batch: Images a step.
        rate: Adam's learning rate, which falls to zero along a line in the last fifth.
        budget: Multiply-adds, in thousands of millions.
        images: Training images.
        tested: Test images.
    """

    widths: tuple[int, ...] = (64, 32, 16, 8)
    latent: int = 16
    start: int = 4
    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.65)
    fade: float = 0.5
    batch: int = 32
    rate: float = 2e-3
    budget: float = 250.0
    images: int = 20_000
    tested: int = 2_000

    @property
    def size(self) -> int:
        """The highest resolution."""
        return self.start * 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one resolution."""

    level: int
    fading: bool
    share: float


@dataclass(frozen=True)
class Run:
    """What one training gave.

    Attributes:
        way: How it was trained.
        seed: Of the weights and of the order of images.
        error: The mean squared error on the test images, pixels from 0 to 1.
        steps: The steps at each resolution.
        seconds: The time that training took.
        curve: Share of the budget, and error on some test images, at the highest resolution.
    """

    way: str
    seed: int
    error: float
    steps: tuple[int, ...]
    seconds: float
    curve: tuple[tuple[float, float], ...]


def phases(way: str, settings: Settings) -> Iterator[Phase]:
    """What comes one after the other."""
    top = len(settings.widths) - 1
    if way == WAYS[0]:
        yield Phase(top, fading=False, share=1.0)
        return
    for level, share in enumerate(settings.shares):
        fade = settings.fade if level else 0.0
        if fade:
            yield Phase(level, fading=True, share=share * fade)
        yield Phase(level, fading=False, share=share * (1 - fade))


def multiply_adds(model: Any, x: Tensor) -> float:
    """Those of one step, in thousands of millions; the model is as before."""
    with FlopCounterMode(display=False) as counter:
        F.mse_loss(model(x), x).backward()
    model.zero_grad()
    return counter.get_total_flops() / 2e9


def at(images: Tensor, size: int) -> Tensor:
    """Images at a lower resolution: means of squares of pixels."""
    return F.avg_pool2d(images, images.shape[-1] // size)


@torch.no_grad()
def reconstructions(model: Any, images: Tensor) -> Tensor:
    """What becomes of images, at their own resolution whatever the model's is."""
    model.eval()
    parts = [model(at(part, model.resolution)) for part in images.split(250)]
    model.train()
    return F.interpolate(torch.cat(parts), size=images.shape[-1], mode="nearest")


def error_on(model: Any, images: Tensor) -> float:
    """The mean squared error, pixels from 0 to 1."""
    return F.mse_loss(reconstructions(model, images), images).item() / 4


class Training:
    """One network on its way: its optimizer, and what was spent and seen so far."""

    def __init__(self, way: str, seed: int, data: tuple[Tensor, Tensor], settings: Settings):
        torch.manual_seed(seed)
        self.way, self.seed, self.settings = way, seed, settings
        self.images, self.tested = data
        self.model = splitgrow.ProgressiveAutoencoder.of_widths(
            settings.widths, image_channels=3, start=settings.start, latent=settings.latent
        )
        if way == WAYS[0]:
            for _ in settings.widths[1:]:
                self.model.grow(fade=False)
        self._order = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.rate)
        self._steps = [0] * len(settings.widths)
        self.spent, self._seconds = 0.0, 0.0
        self.curve: list[tuple[float, float]] = []

    def run(self, watch: Callable[[Training], None]) -> Run:
        """Trains through all phases; `watch` is called now and then."""
        for phase in phases(self.way, self.settings):
            if phase.level > self.model.level:
                self.model.grow(optimizer=self._optimizer, hold_old=self.way == WAYS[2])
            self._train(phase, watch)
            self.model.finish(optimizer=self._optimizer)
        error = error_on(self.model, self.tested)
        steps, seconds = tuple(self._steps), round(self._seconds, 1)
        return Run(self.way, self.seed, error, steps, seconds, tuple(self.curve))

    def _train(self, phase: Phase, watch: Callable[[Training], None]) -> None:
        batch = at(self.images[: self.settings.batch], self.model.resolution)
        cost = multiply_adds(self.model, batch)
        count = max(1, round(phase.share * self.settings.budget / cost))
        schedule = splitgrow.FadeSchedule(self.model, count) if phase.fading else None
        every = max(1, count // max(1, round(12 * phase.share)))
        for index in range(count):
            started = time.perf_counter()
            self._step()
            if schedule is not None:
                schedule.step()
            self._seconds += time.perf_counter() - started
            self.spent += cost
            if index % every == every - 1:
                share = round(self.spent / self.settings.budget, 4)
                self.curve.append((share, error_on(self.model, self.tested[:500])))
            if index % 10 == 9:
                watch(self)
        self._steps[phase.level] += count

    def _step(self) -> None:
        left = max(0.0, 1 - self.spent / self.settings.budget)
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.rate * min(1.0, 5 * left)
        chosen = torch.randint(len(self.images), (self.settings.batch,), generator=self._order)
        x = at(self.images[chosen], self.model.resolution)
        self._optimizer.zero_grad()
        F.mse_loss(self.model(x), x).backward()
        self._optimizer.step()


def load(path: Path, settings: Settings, track: Any) -> tuple[Tensor, Tensor]:
    """Training and test images (N, 3, size, size), from -1 to 1; the same whenever it is called."""
    raw = imagefolder.read(path, size=settings.size, track=track)
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
