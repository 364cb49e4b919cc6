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

    Example:
        >>> import torch
        >>> from splitgrow.continual import Separate, Task, Training
        >>> from torch import nn
        >>> x = torch.randn(64, 4)
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> learner = Separate(net, x[:1], training=Training(epochs=1))
        >>> record = learner.learn(Task("signs", 2, (x, (x[:, 0] > 0).long())))
        >>> learner.predict(x, task="signs").shape
        torch.Size([64, 2])
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
