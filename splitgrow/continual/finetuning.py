"""Training the same network on one task after the other, with nothing against forgetting."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from splitgrow.continual.learner import Learner
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.studies import Study, whole_study
from splitgrow.continual.tasks import Task
from splitgrow.continual.training import cross_entropy


class Finetuning(Learner):
    """Naive finetuning: it does nothing against forgetting.

    The body belongs to no task: every task starts from the weights the last one left, and changes
    them for all tasks. Every task has a head of its own.

    Args:
        **common: The arguments of every learner; see `Learner`.

    Example:
        >>> import torch
        >>> from splitgrow.continual import Finetuning, Task, Training
        >>> from torch import nn
        >>> x = torch.randn(64, 4)
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> learner = Finetuning(net, x[:1], training=Training(epochs=1))
        >>> record = learner.learn(Task("signs", 2, (x, (x[:, 0] > 0).long())))
        >>> learner.predict(x, task="signs").shape
        torch.Size([64, 2])
    """

    method = "finetuning"
    frozen = False

    def _learn(self, task: Task, number: int) -> TaskRecord:
        study = self._study(task)
        self._train(study, task, "train", loss=self._loss)
        return self._taken_over(study, task, number)

    def _study(self, task: Task) -> Study:
        return whole_study(self.body, self._new_head(task.classes))

    def _loss(self, network: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return cross_entropy(network, x, y)

    def _taken_over(self, study: Study, task: Task, number: int) -> TaskRecord:
        """Takes over the values of a study into the body."""
        accuracy = self._judge(study, task, "train")
        own = {name: study.weight(name).detach() for name in study.mine}
        self.body.set_values({**own, **study.own_values()})
        return TaskRecord(
            name=task.name,
            number=number,
            classes=task.classes,
            edit=self.body.edit,
            head=study.head,
            accuracy=accuracy,
        )
