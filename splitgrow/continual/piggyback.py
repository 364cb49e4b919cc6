"""Piggyback: tasks pick weights of one network that never changes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from splitgrow.continual.masked import MaskedLearner
from splitgrow.continual.masks import Picks
from splitgrow.continual.options import LearnerOptions
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.tasks import Task


class Piggyback(MaskedLearner):
    r"""Piggyback (Mallya et al., Adapting a Single Network by Learning to Mask, ECCV 2018).

    The first task trains the network. Every later one learns a score for each weight and uses

    .. math:: W_t = W \odot [S_t > \theta]

    with :math:`\theta` = 0.005 and scores that begin at 0.01, equation 2; or, ternary, -1 where
    :math:`S_t < -\theta`. The scores receive the gradient of their picks times the weight,
    equation 4, and are trained by Adam.

    Differences from the paper: its network is trained on ImageNet first; here the network is the
    first task's, or, with `pretrained`, the given model. Norms and biases are every task's own.

    Args:
        picks: "binary" or "ternary".
        pretrained: Whether tasks pick from the model's own weights, and none is trained.
        **common: The arguments of every learner; see `Learner`.

    Example:
        >>> import torch
        >>> from splitgrow.continual import Piggyback, Task, Training
        >>> from torch import nn
        >>> x = torch.randn(64, 4)
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> learner = Piggyback(net, x[:1], training=Training(epochs=1))
        >>> record = learner.learn(Task("signs", 2, (x, (x[:, 0] > 0).long())))
        >>> learner.predict(x, task="signs").shape
        torch.Size([64, 2])
    """

    method = "piggyback"
    settings = ("picks", "pretrained")

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Tensor | tuple[Any, ...],
        *,
        picks: Picks = "binary",
        pretrained: bool = False,
        **common: Unpack[LearnerOptions],
    ) -> None:
        super().__init__(model, example_inputs, **common)
        if picks not in {"binary", "ternary"}:
            raise ValueError(f'picks must be "binary" or "ternary", got {picks!r}')
        self.picks, self.pretrained = picks, pretrained
        if pretrained:
            self.body.own_all(1)

    @property
    def _next(self) -> int:
        """The number of the next task; a pretrained network counts as a task."""
        return super()._next + self.pretrained

    def _learn(self, task: Task, number: int) -> TaskRecord:
        study = self._begin(task, picks=self.picks if number > 1 else None)
        self._train(study, task, "train" if number == 1 else "pick")
        return self._commit(study, task, self._judge(study, task, "train"))
