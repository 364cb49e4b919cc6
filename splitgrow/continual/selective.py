"""Selective retraining: training only the weights between the units that a task needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from splitgrow.analysis.units import Unit
from splitgrow.continual.learner import Learner
from splitgrow.continual.proximal import pull_, soften_
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.regrowth import UnitValues
from splitgrow.continual.studies import Study, TaskView
from splitgrow.continual.tasks import Task
from splitgrow.continual.training import Training
from splitgrow.continual.units import Units

SelectionRule = Callable[[Study, float], None]
"""Changes a study after each step, given the rate at which it has followed gradients."""

_MEMORY = 200
"""The number of steps after which momentum counts as zero."""


def _pace(training: Training, step: int, steps: int | None) -> float:
    """The distance that a step moves a weight whose gradient has been 1 since the first step."""
    momentum = sum(training.momentum**age for age in range(min(step, _MEMORY)))
    return training.lr * momentum * training.share(step - 1, steps)


@dataclass
class Course:
    """A task while it is learned.

    Attributes:
        task: The task.
        first: The units before the task.
        before: The shared tensors before the task, by slots' names.
        units: The units at present.
        values: The task's own tensors at present.
        chosen: The units that it trains.
    """

    task: Task
    first: Units
    before: dict[str, Tensor]
    units: Units
    values: UnitValues
    chosen: frozenset[Unit] = frozenset()


class SelectiveLearner(Learner):
    """A learner whose tasks retrain the weights between the units that they need.

    The body holds the present values of the task that is being learned. Its course has the values
    from before it.
    """

    l1: float
    l2: float
    pull: float
    select_epochs: int

    def _begin(self, task: Task) -> Course:
        units = Units(self.body)
        head = self._new_head(task.classes).to(self.body.device)
        before = {n: slot.tensor.detach().clone() for n, slot in self.body.shared.items()}
        own = dict(self.records[-1].own or {}) if self.records else {}
        return Course(task, units, before, units, UnitValues(own, head))

    def _train_all(self, course: Course) -> None:
        """Trains all weights, with an L1 norm."""
        mine = {name: torch.ones_like(t, dtype=torch.bool) for name, t in course.before.items()}

        def rule(study: Study, rate: float) -> None:
            for weight in (*study.weights, study.head.weight):
                soften_(weight, rate * self.l1)

        study = self._study(course, mine)
        self._fit(study, course, "train", rule, l2=0.0)
        self._take_over(study, course)

    def _select(self, course: Course) -> None:
        """Finds the units that the task needs, by training its head alone with an L1 norm."""
        study = self._study(course, {})
        for parameter in study.own:
            parameter.requires_grad_(False)

        def rule(study: Study, rate: float) -> None:
            soften_(study.head.weight, rate * self.l1)

        self._fit(study, course, "select", rule, l2=0.0, epochs=self.select_epochs)
        self._take_over(study, course)
        read = (course.values.head.weight != 0).any(0)
        if not bool(read.any()):  # a head without any nonzero weight may need all
            read = torch.ones_like(read)
        course.chosen = course.units.needed(course.before, read)

    def _retrain(self, course: Course, goal: float | None) -> float:
        """Trains the weights between chosen units; returns the accuracy after it."""
        study = self._study(course, course.units.between(course.chosen))
        keep, weights = self._keep_to_chosen(course), {n: study.weight(n) for n in study.mine}

        def rule(study: Study, rate: float) -> None:
            keep(study, rate)
            pull_(weights, course.before, rate * self.pull)

        self._fit(study, course, "retrain", rule)
        self._take_over(study, course)
        return self._judge(study, course.task, "retrain", goal)

    def _keep_to_chosen(self, course: Course, units: Units | None = None) -> SelectionRule:
        """Sets to zero the head's weights that read units which are neither chosen nor new."""
        units = course.units if units is None else units
        unread = ~units.on_features(units.marks(course.chosen | units.since(course.units)))

        def keep(study: Study, rate: float) -> None:  # noqa: ARG001
            with torch.no_grad():
                study.head.weight.masked_fill_(unread, 0.0)

        return keep

    def _plain(self, record: TaskRecord) -> nn.Module:
        # The weights of today, also if other tasks have retrained them.
        return self.body.plain(record.own or {}, record.edit, record.head)

    def _distance(self, course: Course) -> float:
        """The distance that the training moves a weight whose gradient is always 1.

        Infinite if its number of steps is not known.
        """
        steps = self._steps(course, self.training.epochs)
        if steps is None:
            return math.inf
        return sum(_pace(self.training, step, steps) for step in range(1, steps + 1))

    def _steps(self, course: Course, epochs: int) -> int | None:
        """The number of steps in some epochs, if that is known."""
        batches = self.batches(course.task.train)
        return epochs * len(batches) if batches.known else None

    # -- common parts -----------------------------------------------------------------------------

    def _study(self, course: Course, mine: Mapping[str, Tensor]) -> Study:
        """A study that sees all of the body, and trains a part of it."""
        body, values = self.body, course.values
        view = TaskView(mine={name: mask for name, mask in mine.items() if bool(mask.any())})
        for name, mask in view.mine.items():
            if not bool(mask.all()):
                view.base[name] = body.slots[name].tensor.detach()
        return Study(body, view, values.own, values.head).to(body.device)

    def _take_over(self, study: Study, course: Course) -> None:
        """Takes over the values of a study into the body and the task's own tensors."""
        found = {name: value.detach().clone() for name, value in study.values().items()}
        self.body.set_values({name: found[name] for name in study.mine})
        course.values = UnitValues(study.own_values(), study.head)

    def _fit(
        self,
        study: Study,
        course: Course,
        what: str,
        rule: SelectionRule,
        *,
        l2: float | None = None,
        epochs: int | None = None,
    ) -> None:
        """Trains a study, with a rule after each step."""
        training = replace(self.training, weight_decay=self.l2 if l2 is None else l2)
        epochs = training.epochs if epochs is None else epochs
        steps = self._steps(course, epochs)

        def after_step(step: int) -> None:
            rule(study, _pace(training, step, steps))

        if epochs:
            self._train(
                study, course.task, what, epochs=epochs, training=training, after_step=after_step
            )
