"""Claim: a small GPT that grows in stream, heads, MLPs and depth, against a large one.

All see text of the same files in batches of the same size, and get the same number of multiply-adds
(forward and backward passes, counted by torch). Each way is trained with each learning rate, and
the best by the mean validation loss counts.

    python -m benchmarks.language

The text is the source code of Python's standard library. What has been measured is kept in
benchmarks/results/language.json after each run, also after Ctrl-C, and the runs that are there
already are not made again. --page writes the table of benchmarks/README.md, and its picture.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks.language.results import read_runs, table, write_page, write_picture
from benchmarks.language.training import WAYS, Run, Settings, Training, text
from benchmarks.page import PAGE
from benchmarks.runs import FOLDER, write_runs


def measure(settings: Settings, seeds: int, path: Path, console: Console) -> list[Run]:
    """Makes the runs that are missing and writes each as it is done."""
    runs = read_runs(path, settings)
    done = {(run.seed, run.way, run.rate) for run in runs}
    missing = [each for each in product(range(seeds), WAYS, settings.rates) if each not in done]
    data = text()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(missing))
        for index, (seed, way, rate) in enumerate(missing):

            def watch(share: float, before: int = index) -> None:
                progress.update(task, completed=before + share)

            progress.update(task, description=f"{way}, seed {seed}, rate {rate:g}")
            runs.append(Training(way, seed, rate, settings, data, watch).run())
            write_runs(path, settings, runs)
    return runs


@click.command()
@click.option("--json", "path", type=click.Path(path_type=Path), default=FOLDER / "language.json")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@click.option(
    "--steps",
    type=click.IntRange(20),
    default=Settings.steps,
    show_default=True,
    help="Steps of the large network, which set the multiply-adds of all runs.",
)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
@click.option("--page", is_flag=True, help="Only write the table and its picture.")
def main(path: Path, seeds: int, steps: int, threads: int, *, page: bool) -> None:
    """A small GPT that grows, against a large one on the same text."""
    torch.set_num_threads(threads)
    settings, console = replace(Settings(), steps=steps), Console()
    if not page:
        try:
            measure(settings, seeds, path, console)
        except KeyboardInterrupt:
            console.print("Stopped; the finished runs are kept, and the next call goes on.")
        click.echo(table(read_runs(path, settings)))
        return
    if not path.exists():
        raise click.UsageError(f"{path} is missing: run without --page first")
    write_page(PAGE, path)
    write_picture(path)


if __name__ == "__main__":
    main()
