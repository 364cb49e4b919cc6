"""The page of the benchmark, with its pictures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.learning.initializers import initializers_table
from benchmarks.learning.plan import read
from benchmarks.learning.results import chosen_runs, lines, table, verdict
from benchmarks.learning.rivals.page import rivals_section
from benchmarks.learning.tasks import BUDGETS, TASKS, Task
from benchmarks.learning.training import ARMS, Run
from benchmarks.learning.where import read_trials, trials_table

mpl.use("Agg")
PAGE = Path(__file__).parent.parent / "LEARNING.md"
RESULTS = Path(__file__).parent.parent / "results"
SHOWN = ("large", "large, half", "small", "grown", "grown, half")
_INTRODUCTION = """\
# Growing to learn: the measurements

`python -m benchmarks.learning` makes the runs; `--runs benchmarks/results/learning --page` writes
this page from those that are kept there. A large network, a small one and one that grows from the
one to the other are trained by the same loop, with AdamW and a rate that rises and falls over the
budget. Each budget is in multiply-adds, forward and backward, counted by torch. The grown network
grows three times, at 20, 35 and 50 % of its budget, by the initializer "zero"; everything trains
on, and `absorb` makes it plain again. "Frozen" is the same with `freeze=True`, which is for
learning without forgetting.

"Large", "small, half" and "grown, half" are each tried with three sizes of batches and three rates
on one seed. The settings with the best validation score are run with all seeds; the other arms take
those of the one that they resemble. Scores in the tables are on test data, with the standard
deviation over seeds. Seconds are those of the processor, one thread, with all that growth takes,
relative to the large network. The last column tells at which share of the large network's
multiply-adds and seconds a run's validation score is first as good as the large network's last one,
for each seed.
"""
_INITIALIZERS = """\
Each initializer in the arm "grown, half", with the batch and rate that were chosen for "zero".
"""
_SCORES = """\
## Scores

Spearman's rank correlation of a score with the measured gain of growing each layer alone by half:
the fall of the validation loss below that of the network that did not grow, after as many further
steps on the same batches.
"""
_CLAIMS = """\
## What others report

| method | reported | what is counted |
|---|---|---|
| LEMON ([2310.07999](https://arxiv.org/abs/2310.07999)) | 56.7 % (ViT), 33.2 % (BERT) saved | the \
training of the large model; the small one is there already |
| LiGO ([2303.00980](https://arxiv.org/abs/2303.00980)) | up to 50 % saved | the same |
| bert2BERT ([2110.07143](https://arxiv.org/abs/2110.07143)) | 45 % (BERT), 47 % (GPT) saved | the \
same |
| staged training ([2203.06211](https://arxiv.org/abs/2203.06211)) | up to 22 % saved | all stages |
| stacking, G_stack ([2405.15319](https://arxiv.org/abs/2405.15319)) | 54.6 % faster to a loss, at \
7 billion parameters | all stages |

In the tables above all training counts, from the small network's first step. To count as the first
three do, take the multiply-adds after the last growth: half of those of a grown arm.
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
            if any(run.job.arm == "large, half" for run in made):
                parts.append(_section(task, budget, size, made))
    trials = read_trials(runs / "where.jsonl")
    if trials:
        parts.append(f"{_SCORES}\n{trials_table(trials)}\n")
    parts += [rivals_section(RESULTS), _CLAIMS]
    PAGE.write_text("\n".join(parts))
    return PAGE


def _section(task: Task, budget: str, size: float, made: Sequence[Run]) -> str:
    name = f"learning-{task.name}-{budget}.png"
    draw(task, size, made, RESULTS / name)
    found = lines(task, size, made)
    told = [
        f"## {task.name}, {budget}: {size:,.0f} billion multiply-adds",
        f"{task.says[0].upper()}{task.says[1:]}. {verdict(task, found)}",
        table(task, found),
        f"![scores over multiply-adds and over seconds](results/{name})",
    ]
    initializers = initializers_table(task, size, made)
    if initializers:
        told += [_INITIALIZERS.rstrip(), initializers]
    return "\n\n".join(told) + "\n"


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
            style = "--" if "half" in arm else ":" if arm == "small" else "-"
            place.plot(values, scores, style, color=colours[arm], label=arm, lw=1.8)
            for share in ARMS[arm].grown_at if place is axes[0] else ():
                place.axvline(share * ARMS[arm].share * budget, color=colours[arm], lw=0.4)
    axes[0].set_xlabel("multiply-adds, billions (thin lines: growths)")
    axes[1].set_xlabel("seconds of one thread")
    axes[0].set_ylabel("validation loss, nats" if task.error else "validation accuracy, %")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
