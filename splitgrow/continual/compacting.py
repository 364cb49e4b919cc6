"""Learning to a goal: growth while a task misses it, pruning while the task holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn
from typing_extensions import Unpack

from splitgrow.continual.masked import MaskedLearner
from splitgrow.continual.masks import Picks
from splitgrow.continual.options import LearnerOptions
from splitgrow.continual.pruning import GradualPruning, keep_largest
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.settings import checked_goal, goal_for
from splitgrow.continual.studies import Study
from splitgrow.continual.tasks import Task
from splitgrow.continual.training import Training

_SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
"""The sparsities to which a task is pruned, in this order (the published script's)."""


@dataclass
class _State:
    """A state of a study that pruning may return to."""

    sparsity: float
    accuracy: float
    snapshot: dict[str, Any]


class CompactingLearner(MaskedLearner):
    """The common part of CPG and Pack and Expand.

    Args:
        goal: The accuracy that a task is to reach, better than guessing (one divided by the number
            of its classes) and at most 1: one number, or one by task name. None to train a network
            of the same architecture on the task alone, for as many epochs, and to take the accuracy
            that it reaches.
        tolerance: The difference by which a pruned state may miss the goal.
        growth: The weights that one growth adds, as a share of the first network's.
        largest: The largest expansion: the number of weights, in multiples of the first network's.
        prune_epochs: The epochs of every step of pruning; a fifth of the training's by default.
        sparsities: The shares of a task's weights to prune, one after the other.
        patience: The number of sparsities in a row that may miss the goal before pruning ends; None
            to try all of them, since a sparser state may hold the goal again.
        retrain_epochs: The epochs in which picks and weights train again after pruning; as many
            as the training's by default.
        prune_lr: The learning rate while pruning, as a share of the training's.
        expected_tasks: The number of all tasks; None if that is not known.
        **common: The arguments of every learner; see `Learner`.
    """

    picks: ClassVar[Picks | None]
    settings = (
        "goal",
        "tolerance",
        "growth",
        "largest",
        "prune_epochs",
        "sparsities",
        "patience",
        "retrain_epochs",
        "prune_lr",
        "expected_tasks",
    )

    def __init__(  # noqa: PLR0913
        self,
        model: nn.Module,
        example_inputs: Tensor | tuple[Any, ...],
        *,
        goal: float | Mapping[str, float] | None = None,
        tolerance: float = 0.0,
        growth: float = 0.25,
        largest: float = 1.5,
        prune_epochs: int | None = None,
        sparsities: tuple[float, ...] = _SPARSITIES,
        patience: int | None = None,
        retrain_epochs: int | None = None,
        prune_lr: float = 0.1,
        expected_tasks: int | None = None,
        **common: Unpack[LearnerOptions],
    ) -> None:
        super().__init__(model, example_inputs, **common)
        if not growth > 0 or not largest >= 1:
            raise ValueError(
                f"growth ({growth!r}) must be above 0, largest ({largest!r}) at least 1"
            )
        if list(sparsities) != sorted({*sparsities}) or not all(0 < s < 1 for s in sparsities):
            raise ValueError(f"sparsities must rise within 0 and 1, got {sparsities!r}")
        self.goal = checked_goal("goal", goal)
        self.tolerance, self.growth, self.largest = tolerance, growth, largest
        epochs = self.training.epochs
        self.prune_epochs = max(1, epochs // 5) if prune_epochs is None else prune_epochs
        self.retrain_epochs = epochs if retrain_epochs is None else retrain_epochs
        least = 1 if patience is None else patience
        if self.prune_epochs < 1 or self.retrain_epochs < 0 or least < 1:
            raise ValueError(
                f"prune_epochs ({self.prune_epochs}) and patience ({patience}) must be at least 1, "
                f"retrain_epochs ({self.retrain_epochs}) at least 0"
            )
        self.sparsities, self.patience = tuple(sparsities), patience
        self.prune_lr, self.expected_tasks = prune_lr, expected_tasks

    def _learn(self, task: Task, number: int) -> TaskRecord:
        if not self.batches(task.train).known:
            raise ValueError(
                f"task {task.name!r} has a loader of unknown length, over which pruning cannot be "
                f"spread; give it a length, or a Dataset"
            )
        goal = self._goal_of(task, goal_for(task, "goal", self.goal))
        study, reached = self._trained(task, number, goal)
        details: dict[str, Any] = {"goal": goal, "before pruning": reached}
        kept = _State(0.0, reached, study.snapshot())
        if study.mine:
            kept = self._compacted_to(study, task, kept, goal)
            study.restore(kept.snapshot)
        details |= {"pruned": kept.sparsity, "after pruning": kept.accuracy}
        if self.retrain_epochs and (study.scores or kept.sparsity):
            kept = self._retrained(study, task, kept)
        details["expansion"] = self.body.size / self.body.weights
        record = self._commit(study, task, kept.accuracy)
        record.details = details
        return record

    def _trained(self, task: Task, number: int, goal: float) -> tuple[Study, float]:
        """A study that holds the goal, or one at the largest expansion."""
        while True:
            study = self._begin(task, picks=self.picks if number > 1 else None)
            self._train(study, task, "train")
            reached = self._judge(study, task, "train", goal)
            if reached >= goal or not self._expanded(task):
                return study, reached

    def _expanded(self, task: Task) -> bool:
        """Widens the body by one step, if the bounds allow it."""
        body = self.body
        target = min(self.largest, body.size / body.weights + self.growth)
        # Widths go with the square root of weights, since a layer has outputs times inputs.
        factor = math.sqrt(target * body.weights / body.size)
        if target * body.weights < body.size * 1.01:
            return False
        return self._grow(task, factor)

    def _compacted_to(self, study: Study, task: Task, kept: _State, goal: float) -> _State:
        """The sparsest state that holds the goal, or that leaves room for future tasks."""
        held = kept.accuracy >= goal
        wanted = goal if held else None
        initial = {name: int(mask.sum()) for name, mask in study.mine.items()}
        least = self._least_sparsity() if not held else 0.0
        before, missed = 0.0, 0
        for sparsity in self.sparsities:
            if wanted is None and sparsity > least + 1e-9:
                break
            self._prune_to(study, task, initial, (before, sparsity))
            reached = self._judge(study, task, f"prune to {sparsity:g}", wanted)
            before = sparsity
            if wanted is None or reached >= wanted - self.tolerance:
                kept, missed = _State(sparsity, reached, study.snapshot()), 0
                continue
            missed += 1
            if missed == self.patience:
                break
        return kept

    def _least_sparsity(self) -> float:
        """The share to prune of a task that misses its goal at the largest expansion."""
        if self.expected_tasks is None:
            return 0.0
        left = max(0, self.expected_tasks - self._next)
        return 1 - round(1 / (left + 1), 1) if left else 0.0

    def _prune_to(
        self, study: Study, task: Task, initial: Mapping[str, int], span: tuple[float, float]
    ) -> None:
        """Prunes from one sparsity to another during training; the picks stay."""
        steps = self.prune_epochs * len(self.batches(task.train))
        # Half of the steps are left for the remaining weights to settle.
        schedule = GradualPruning(*span, steps=max(1, steps // 2), every=max(1, steps // 20))

        def prune(step: int) -> None:
            if schedule.due(step):
                for name, mask in study.mine.items():
                    keep = round((1 - schedule.sparsity(step)) * initial[name])
                    study.keep_only(name, keep_largest(study.weight(name), mask, keep))

        self._train(
            study,
            task,
            f"prune to {span[1]:g}",
            epochs=self.prune_epochs,
            training=self._slower(),
            after_step=prune,
        )

    def _slower(self) -> Training:
        return replace(
            self.training, lr=self.prune_lr * self.training.lr, score_lr=0.0, schedule="constant"
        )

    def _retrained(self, study: Study, task: Task, kept: _State) -> _State:
        """Trains picks and weights again, and keeps the result if it is better."""
        study.reset_scores()
        self._train(study, task, "retrain", epochs=self.retrain_epochs)
        reached = self._judge(study, task, "retrain", kept.accuracy)
        if reached >= kept.accuracy:
            return _State(kept.sparsity, reached, study.snapshot())
        study.restore(kept.snapshot)
        return kept
