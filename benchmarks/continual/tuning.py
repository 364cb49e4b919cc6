"""Chooses the strengths of methods that are nothing without the right one, without test images.

    python -m benchmarks.continual.tuning --runs DIR --data glyph100=PATH --avalanche PYTHON

Half of each class's training images is learned from, and some of the other half are judged; what
is best there on average is to be written into `benchmarks.continual.suites`. Avalanche's methods
are given the same care as ours.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.continual.jobs import Job
from benchmarks.continual.results import TUNING, found_of
from benchmarks.continual.running import data_option, run_all, write_task_files
from benchmarks.continual.suites import CANDIDATES, SUITES, Suite, ordered
from splitgrow.demos import datasets

JUDGED = 200
"""Images of a class, at most, that are judged."""


def hold_out(source: Path, target: Path) -> None:
    """Writes data whose test images are every other training image of each class.

    Args:
        source: Data that `splitgrow continual` reads.
        target: The .npz file.
    """
    dataset = datasets.load_dataset(source)
    labels = dataset.y_train.numpy()
    order = np.argsort(labels, kind="stable")
    learned, others = order[0::2], order[1::2]
    judged = np.concatenate([others[labels[others] == each][:JUDGED] for each in np.unique(labels)])
    pixels = dataset.x_train.numpy()
    low, high = pixels.min((0, 2, 3), keepdims=True), pixels.max((0, 2, 3), keepdims=True)
    # Images are normalised by an affine map of each channel, from 0 and 255 at its ends.
    images = np.round((pixels - low) / (high - low) * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    target.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        target,
        x_train=images[learned],
        y_train=labels[learned],
        x_test=images[judged],
        y_test=labels[judged],
    )


def candidates(suite: Suite, data: Path, runs: Path) -> dict[str, list[tuple[float, list[Job]]]]:
    """Every value with its runs, one for each seed, by contestant."""
    found = {}
    for contestant in ordered():
        for option, values in CANDIDATES.get(contestant.name, {}).items():
            found[contestant.name] = [
                (
                    value,
                    [
                        Job(
                            replace(suite, chosen={}),
                            replace(
                                contestant,
                                name=f"{contestant.name} {value:g}",
                                options={**contestant.options, option: value},
                            ),
                            seed,
                            data,
                            runs,
                        )
                        for seed in range(suite.tried)
                    ],
                )
                for value in values
            ]
    return found


def came_to(jobs: Sequence[Job]) -> float | None:
    """The mean accuracy over seeds; None if any run failed."""
    if not all(job.finished for job in jobs):
        return None
    return statistics.fmean(found_of(job).accuracy for job in jobs)


@click.command()
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), required=True)
@click.option("--data", callback=data_option, multiple=True, required=True, metavar="NAME=PATH")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, help="At once.")
@click.option("--avalanche", metavar="PYTHON", required=True, help="An interpreter that has it.")
def main(runs: Path, data: dict[str, Path], jobs: int, avalanche: str) -> None:
    """Tries every strength, and writes what came of each."""
    document: dict[str, Any] = json.loads(TUNING.read_text()) if TUNING.exists() else {}
    for suite in SUITES:
        if suite.name not in data:
            continue
        held = runs.resolve() / f"{suite.name}.npz"
        if not held.exists():
            hold_out(data[suite.name], held)
        tried = candidates(suite, held, runs.resolve())
        everything = [job for each in tried.values() for _, own in each for job in own]
        write_task_files(everything)
        run_all([job for job in everything if not job.finished], jobs, 1, avalanche)
        document[suite.name] = {
            name: {f"{value:g}": came_to(own) for value, own in each}
            for name, each in tried.items()
        }
        TUNING.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        click.echo(json.dumps(document[suite.name], indent=1))


if __name__ == "__main__":
    main()
