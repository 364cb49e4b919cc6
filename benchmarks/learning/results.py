"""What the runs say: how far each arm comes, and what it takes to the large network's score."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.learning.plan import BY, SMALL, TUNED, best_settings
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
    rows = [
        f"| arm | batch, rate | test {unit} | multiply-adds | seconds | to the large one's score: "
        f"multiply-adds, seconds |",
        "|---|---|---|---|---|---|",
    ]
    for line in found:
        reached = ", ".join(
            "never" if math.isinf(u) else f"{u:.2f}, {s:.2f}" for u, s in line.reached
        )
        rows.append(
            f"| {line.arm} | {line.settings[0]}, {line.settings[1]:g} | "
            f"{spoken(task, line)} | {line.spent:g} | "
            f"{statistics.mean(line.seconds):.2f} | {reached} |"
        )
    return "\n".join(rows)


def spoken(task: Task, line: Line) -> str:
    """A line's score with its spread."""
    digits = 3 if task.error else 1
    spread = "" if math.isnan(line.spread) else f" ± {line.spread:.{digits}f}"
    return f"{line.mean:.{digits}f}{spread}"


def apart(task: Task, one: Line, other: Line) -> bool:
    """Whether the worst score of one arm is better than the best of another."""
    worst, best = (max, min) if task.error else (min, max)
    mine, theirs = worst(one.scores), best(other.scores)
    return task.better(mine, theirs) and mine != theirs


def verdict(task: Task, found: Sequence[Line]) -> str:
    """Whether growing pays: against the large network, and against staying small."""
    arms = {line.arm: line for line in found}
    large, grown, small = (arms.get(name) for name in ("large", BY, SMALL))
    if large is None or grown is None or small is None:
        return ""
    seconds = statistics.mean(grown.seconds)
    told = (
        f"At half the multiply-adds and {seconds:.2f} of the seconds the grown network has "
        f"{spoken(task, grown)}, the large one at all of them {spoken(task, large)}: "
    )
    if apart(task, grown, large):
        told += "the grown one is better, for each pair of seeds. "
    elif apart(task, large, grown):
        told += "growing does not reach it. "
    else:
        told += "the spreads overlap. "
    told += f"A network that stays small has {spoken(task, small)} at the same half: "
    if apart(task, grown, small):
        return told + "growing is better than to stay small."
    if apart(task, small, grown):
        return told + "at this budget it is better to stay small than to grow."
    return told + "growing and staying small do not differ by more than the seeds do."
