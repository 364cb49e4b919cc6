"""One network for each task: the baseline of other methods."""

from __future__ import annotations

from splitgrow.continual.learner import Learner
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.tasks import Task


class Separate(Learner):
    """A network for each task, trained on it alone from the model's first values.

    Tasks share nothing: they forget nothing, they pass nothing on, and each costs the weights of a
    network.

    Args:
        **common: The arguments of every learner; see `Learner`.
    """

    method = "separate"

    def _learn(self, task: Task, number: int) -> TaskRecord:
        study = self._trained_alone(task)
        own = {name: study.weight(name).detach().clone() for name in study.mine}
        return TaskRecord(
            name=task.name,
            number=number,
            classes=task.classes,
            edit=0,
            head=study.head,
            own={**own, **study.own_values()},
            accuracy=self._judge(study, task, "alone"),
        )
