"""One network for each task: what other methods are compared with."""

from __future__ import annotations

from splitgrow.continual.learner import Learner
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.tasks import Task


class Separate(Learner):
    """A network for each task, trained on it alone from the model's first values.

    Nothing is shared: nothing is forgotten, nothing is passed on, and there are as many weights as
    tasks ask for.

    Args:
        **common: What every learner takes; see `Learner`.
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
