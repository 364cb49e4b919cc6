"""The page of the benchmark, with its pictures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.learning.plan import read
from benchmarks.learning.results import chosen_runs, lines, table
from benchmarks.learning.tasks import BUDGETS, TASKS, Task
from benchmarks.learning.training import ARMS, Run
from benchmarks.learning.where import read_trials, trials_table

mpl.use("Agg")
PAGE = Path(__file__).parent.parent / "LEARNING.md"
PICTURES = Path(__file__).parent.parent / "results"
SHOWN = ("large", "large, half", "small", "grown", "grown, half")
_INTRODUCTION = """\
# Growing to learn: the measurements

`python -m benchmarks.learning` makes the runs, and `--page` writes this page from them. A large
network, a small one and one that grows from the one to the other in three steps are trained by
the same loop, with AdamW and a rate that rises and falls over the budget. Each budget is in
multiply-adds, forward and backward, counted by torch. Large, small and grown networks are each
tried with three sizes of batches and three rates on one seed; the settings with the best
validation score are run with all seeds. Scores in the tables are on test data. Seconds are those
of the processor, one thread, with all that growth takes, relative to the large network. The last
column tells at which share of the large network's multiply-adds and seconds a run's validation
score is first as good as the large network's last one, for each seed.
"""


def write_page(runs: Path) -> Path:
    """Writes the page, and the pictures beside the other results.

    Args:
        runs: The folder with the runs.

    Returns:
        The page.
    """
    parts = [_INTRODUCTION]
    for task in TASKS.values():
        for budget, size in zip(BUDGETS, task.budgets, strict=True):
            made = read(runs / f"{task.name}-{budget}.jsonl")
            if not any(run.job.arm == "large" for run in made):
                continue
            name = f"learning-{task.name}-{budget}.png"
            draw(task, size, made, PICTURES / name)
            head = f"## {task.name}, {budget}: {size:,.0f} billion multiply-adds"
            parts.append(
                f"{head}\n\n{task.says[0].upper()}{task.says[1:]}.\n\n"
                f"{table(task, lines(task, size, made))}\n\n"
                f"![scores over multiply-adds and over seconds](results/{name})\n"
            )
    trials = read_trials(runs / "where.jsonl")
    if trials:
        parts.append(
            "## Scores\n\nSpearman's rank correlation of a score with the measured gain of growing "
            f"each layer alone by half.\n\n{trials_table(trials)}\n"
        )
    PAGE.write_text("\n".join(parts))
    return PAGE


def draw(task: Task, budget: float, runs: Sequence[Run], path: Path) -> None:
    """Draws validation scores over multiply-adds and over seconds, the mean of the seeds."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    colours = dict(zip(SHOWN, ("#4477aa", "#88bbdd", "#999933", "#cc3311", "#ee9988"), strict=True))
    for arm in SHOWN:
        own = chosen_runs(task, budget, runs, arm)
        if not own:
            continue
        points = [
            tuple(statistics.mean(column) for column in zip(*point, strict=True))
            for point in zip(*(run.curve for run in own), strict=False)
        ]
        used, seconds, scores = zip(*points, strict=True)
        for place, values in zip(axes, (used, seconds), strict=True):
            place.plot(values, scores, color=colours[arm], label=arm, lw=1.8)
            for share in ARMS[arm].grown_at if place is axes[0] else ():
                place.axvline(share * ARMS[arm].share * budget, color=colours[arm], lw=0.4)
    axes[0].set_xlabel("multiply-adds, billions")
    axes[1].set_xlabel("seconds of one thread")
    axes[0].set_ylabel("validation loss, nats" if task.error else "validation accuracy, %")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
