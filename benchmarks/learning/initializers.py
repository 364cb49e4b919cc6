"""What the runs say of each initializer: how the growth itself moves the score, and the end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.learning.plan import BY, best_settings
from benchmarks.learning.tasks import Task
from benchmarks.learning.training import ARMS, INITIALIZED, Run


def initializers_table(task: Task, budget: float, runs: Sequence[Run]) -> str:
    """The initializers as a table in Markdown; nothing if only one was run."""
    chosen = best_settings(task, budget, runs, BY)
    own = [r for r in runs if (r.job.batch, r.job.rate, r.job.budget) == (*chosen, budget)]
    unit = "loss, nats" if task.error else "accuracy, %"
    rows = []
    for arm, made in ({BY: ARMS[BY]} | INITIALIZED).items():
        mine = sorted((r for r in own if r.job.arm == arm), key=lambda run: run.job.seed)
        if mine:
            rows.append(f"| {made.initializer} | {_told(task, mine)} |")
    head = (
        f"| initializer | seeds | test {unit} | the three growths move the validation score by | "
        f"share of the seconds that growing takes |\n|---|---|---|---|---|"
    )
    return "\n".join([head, *rows]) if len(rows) > 1 else ""


def _told(task: Task, runs: Sequence[Run]) -> str:
    refused = [run.refused for run in runs if run.refused]
    if refused:
        return f"{len(runs)} | refused: {refused[0].splitlines()[0]} | | "
    digits = 3 if task.error else 1
    scores = [run.test for run in runs]
    spread = f" ± {statistics.stdev(scores):.{digits}f}" if len(scores) > 1 else ""
    moves = zip(*([after - before for before, after in run.jumps] for run in runs), strict=True)
    moved = ", ".join(f"{statistics.mean(move):+.{digits}f}" for move in moves)
    share = statistics.mean(run.growing / run.seconds for run in runs)
    return f"{len(runs)} | {statistics.mean(scores):.{digits}f}{spread} | {moved} | {share:.1%}"
