"""Learning without forgetting: earlier heads keep their outputs on new data."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from splitgrow.continual.finetuning import Finetuning
from splitgrow.continual.options import LearnerOptions
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.studies import Study, TaskView
from splitgrow.continual.tasks import Task


class LwF(Finetuning):
    r"""Learning without Forgetting (Li & Hoiem, ECCV 2016).

    During training, the earlier tasks' heads are to keep the outputs on the new inputs that they
    had before it, up to a temperature:

    .. math:: L_{new} + \lambda \sum_j L_{old}(y^{(j)}_o, \hat y^{(j)}_o)

    with the cross entropy of softened outputs, :math:`p'_i \propto p_i^{1/T}` (equations 2 and 3),
    times T squared, so that its gradients do not depend on T. The earlier heads train along. The
    new head first trains alone (the paper's warm-up step), so that its random outputs do not
    disturb the features that the others read.

    Differences from the paper: the outputs of earlier heads are computed batch by batch, not once
    for all, so that inputs may be augmented.

    Args:
        strength: The factor :math:`\lambda`.
        temperature: T.
        warmup_epochs: For how long the new head trains alone; 0 for not at all, None for a fifth of
            the training's epochs.
        **common: The arguments of every learner; see `Learner`.

    Example:
        >>> import torch
        >>> from splitgrow.continual import LwF, Task, Training
        >>> from torch import nn
        >>> x = torch.randn(64, 4)
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> learner = LwF(net, x[:1], training=Training(epochs=1))
        >>> record = learner.learn(Task("signs", 2, (x, (x[:, 0] > 0).long())))
        >>> learner.predict(x, task="signs").shape
        torch.Size([64, 2])
    """

    method = "lwf"
    settings = ("strength", "temperature", "warmup_epochs")

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Tensor | tuple[Any, ...],
        *,
        strength: float = 1.0,
        temperature: float = 2.0,
        warmup_epochs: int | None = None,
        **common: Unpack[LearnerOptions],
    ) -> None:
        super().__init__(model, example_inputs, **common)
        if not strength >= 0 or not temperature > 0:
            raise ValueError("strength must not be negative, and temperature be above 0")
        if warmup_epochs is None:
            warmup_epochs = -(-self.training.epochs // 5)
        if isinstance(warmup_epochs, bool) or not isinstance(warmup_epochs, int):
            raise ValueError(f"warmup_epochs must be an int or None, got {warmup_epochs!r}")
        if warmup_epochs < 0:
            raise ValueError(f"warmup_epochs must be at least 0, got {warmup_epochs!r}")
        self.strength, self.temperature = strength, temperature
        self.warmup_epochs = warmup_epochs
        self._teacher: Study | None = None

    def _learn(self, task: Task, number: int) -> TaskRecord:
        study = self._study(task)
        study.others = nn.ModuleList(copy.deepcopy(record.head) for record in self.records)
        before = self.body.copied()
        self._teacher = Study(before, TaskView(), {}, copy.deepcopy(study.head)).eval()
        if self.records and self.warmup_epochs:
            self._warm_up(study, task)
        self._train(study, task, "train", loss=self._loss)
        self._teacher = None
        pairs = zip(self.records, study.others, strict=True)
        self.records = [replace(record, head=cast("nn.Linear", head)) for record, head in pairs]
        del study.others
        return self._taken_over(study, task, number)

    def _warm_up(self, study: Study, task: Task) -> None:
        """Trains the head of a study alone."""
        held = [*study.weights, *study.own]
        for parameter in held:
            parameter.requires_grad_(False)
        self._train(study, task, "warm up", epochs=self.warmup_epochs)
        for parameter in held:
            parameter.requires_grad_(True)

    def _loss(self, network: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        features = network.features(x)
        logits: Tensor = network.head(features)
        loss = F.cross_entropy(logits, y)
        if self.records and self._teacher is not None:
            with torch.no_grad():
                before = self._teacher.features(x)
                wanted = [record.head(before) for record in self.records]
            given = [head(features) for head in network.others]
            loss = loss + self.strength * sum(
                _softened(a, b, self.temperature) for a, b in zip(given, wanted, strict=True)
            )
        return loss, logits


def _softened(given: Tensor, wanted: Tensor, temperature: float) -> Tensor:
    """The cross entropy of softened outputs, times the temperature squared."""
    wanted = F.softmax(wanted / temperature, 1)
    given = F.log_softmax(given / temperature, 1)
    return -(wanted * given).sum(1).mean() * temperature**2
