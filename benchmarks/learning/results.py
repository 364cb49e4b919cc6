"""What the runs say: how far each arm comes, and what it takes to the large network's score."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.learning.plan import BY, TUNED, best_settings
from benchmarks.learning.tasks import Task
from benchmarks.learning.training import ARMS, Run


@dataclass(frozen=True)
class Line:
    """One arm on one task.

    Attributes:
        arm: Its name.
        settings: Its batch and rate.
        scores: The test scores, by seeds.
        spent: The multiply-adds, as a share of the large network's.
        seconds: The processor time, as a share of the large network's, by seeds.
        reached: For each seed the shares of the large network's multiply-adds and of its seconds
            at which the validation score is first as good as the large network's last; infinite if
            it never is.
    """

    arm: str
    settings: tuple[int, float]
    scores: tuple[float, ...]
    spent: float
    seconds: tuple[float, ...]
    reached: tuple[tuple[float, float], ...]

    @property
    def mean(self) -> float:
        """The mean test score."""
        return statistics.mean(self.scores)

    @property
    def spread(self) -> float:
        """The standard deviation of the test scores."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else math.nan


def lines(task: Task, budget: float, runs: Sequence[Run]) -> list[Line]:
    """The arms of a task whose runs are there, with the settings that were chosen."""
    large = chosen_runs(task, budget, runs, "large")
    goal = statistics.mean(run.validation for run in large)
    time = statistics.mean(run.seconds for run in large)
    found = []
    for arm in ARMS:
        own = chosen_runs(task, budget, runs, arm)
        if not own:
            continue
        reached = [
            next(
                ((u / budget, s / time) for u, s, score in run.curve if task.better(score, goal)),
                (math.inf, math.inf),
            )
            for run in own
        ]
        found.append(
            Line(
                arm,
                (own[0].job.batch, own[0].job.rate),
                tuple(run.test for run in own),
                ARMS[arm].share,
                tuple(run.seconds / time for run in own),
                tuple(reached),
            )
        )
    return found


def chosen_runs(task: Task, budget: float, runs: Sequence[Run], arm: str) -> list[Run]:
    """The runs of an arm with its chosen settings, in order of seeds."""
    chosen = best_settings(task, budget, runs, TUNED.get(arm, BY))
    own = [r for r in runs if (r.job.arm, r.job.budget) == (arm, budget)]
    return sorted(
        (r for r in own if (r.job.batch, r.job.rate) == chosen), key=lambda run: run.job.seed
    )


def table(task: Task, found: Sequence[Line]) -> str:
    """The arms as a table in Markdown."""
    unit = "loss, nats" if task.error else "accuracy, %"
    digits = 3 if task.error else 1
    rows = [
        f"| arm | batch, rate | test {unit} | multiply-adds | seconds | to the large one's score: "
        f"multiply-adds, seconds |",
        "|---|---|---|---|---|---|",
    ]
    for line in found:
        spread = "" if math.isnan(line.spread) else f" ± {line.spread:.{digits}f}"
        reached = ", ".join(
            "never" if math.isinf(u) else f"{u:.2f}, {s:.2f}" for u, s in line.reached
        )
        rows.append(
            f"| {line.arm} | {line.settings[0]}, {line.settings[1]:g} | "
            f"{line.mean:.{digits}f}{spread} | {line.spent:g} | "
            f"{statistics.mean(line.seconds):.2f} | {reached} |"
        )
    return "\n".join(rows)
