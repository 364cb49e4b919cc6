"""Elastic weight consolidation: springs on the weights that earlier tasks need."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Unpack

from splitgrow.continual.body import Body
from splitgrow.continual.finetuning import Finetuning
from splitgrow.continual.options import LearnerOptions
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.stages import seed_of
from splitgrow.continual.studies import Study
from splitgrow.continual.tasks import Batches, Task
from splitgrow.errors import CheckpointError


class EWC(Finetuning):
    r"""Elastic weight consolidation (Kirkpatrick et al., Overcoming catastrophic forgetting, 2017).

    Springs hold the weights that earlier tasks need:

    .. math:: L(\theta) + \tfrac{\lambda}{2} \sum_j \sum_i F^{(j)}_i (\theta_i - \theta^{(j)}_i)^2

    (equation 3), with the diagonal of the Fisher information :math:`F^{(j)}` at the values
    :math:`\theta^{(j)}` with which task j was learned. One quadratic keeps the sum over tasks, so
    the memory is that of two networks for any number of tasks.

    Differences from the paper: no spring is stiffer than the learning rate allows. With :math:`F`
    the sum over tasks, the stiffness is :math:`\lambda F / (1 + \eta \lambda F)` in place of
    :math:`\lambda F`, so training with a large :math:`\lambda` does not diverge.

    Args:
        strength: The factor :math:`\lambda`.
        samples: The number of a task's examples that estimate its Fisher information, one by one,
            with labels drawn from the network's own outputs.
        **common: The arguments of every learner; see `Learner`.

    Example:
        >>> import torch
        >>> from splitgrow.continual import EWC, Task, Training
        >>> from torch import nn
        >>> x = torch.randn(64, 4)
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> learner = EWC(net, x[:1], training=Training(epochs=1))
        >>> record = learner.learn(Task("signs", 2, (x, (x[:, 0] > 0).long())))
        >>> learner.predict(x, task="signs").shape
        torch.Size([64, 2])
    """

    method = "ewc"
    settings = ("strength", "samples")

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Tensor | tuple[Any, ...],
        *,
        strength: float = 100.0,
        samples: int = 256,
        **common: Unpack[LearnerOptions],
    ) -> None:
        super().__init__(model, example_inputs, **common)
        if not strength >= 0:
            raise ValueError(f"strength must not be negative, got {strength!r}")
        if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
            raise ValueError(f"samples must be an int of at least 1, got {samples!r}")
        self.strength, self.samples = strength, samples
        self._fisher: dict[str, Tensor] = {}
        self._pull: dict[str, Tensor] = {}
        """The sums of Fisher information, and of its product with the values it was taken at."""

    def _learn(self, task: Task, number: int) -> TaskRecord:
        study = self._study(task)
        self._train(study, task, "train", loss=self._loss)
        fisher = self._fisher_of(study, task)
        record = self._taken_over(study, task, number)
        own = _named(study)
        zeros = {name: torch.zeros_like(value) for name, value in fisher.items()}
        self._fisher = {n: self._fisher.get(n, zeros[n]) + f for n, f in fisher.items()}
        self._pull = {n: self._pull.get(n, zeros[n]) + f * own[n] for n, f in fisher.items()}
        return record

    def _loss(self, network: Any, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        loss, logits = super()._loss(network, x, y)
        for name, value in _named(network, detached=False).items():
            if name in self._fisher:
                # The sum of F (v - a)^2 over tasks, up to a constant.
                fisher, pull = self._fisher[name], self._pull[name]
                bound = 1 + self.training.lr * self.strength * fisher
                energy = (fisher * value * value - 2 * pull * value) / bound
                loss = loss + self.strength / 2 * energy.sum()
        return loss, logits

    def _fisher_of(self, study: Study, task: Task) -> dict[str, Tensor]:
        """The diagonal of the Fisher information, in evaluation mode."""
        study.eval()
        found = {name: torch.zeros_like(value) for name, value in _named(study).items()}
        generator = torch.Generator().manual_seed(seed_of(self.seed, self._next, "fisher"))
        batches = Batches(task.train, 1, self.body.device)
        count = 0
        for x, _ in batches.drawn(generator):
            for one in torch.split(x, 1):
                if count == self.samples:
                    break
                parameters = _named(study, detached=False)
                log = F.log_softmax(study(one), 1)[0]
                drawn = torch.multinomial(log.detach().exp().cpu(), 1, generator=generator)
                gradients = torch.autograd.grad(
                    log[int(drawn)], list(parameters.values()), allow_unused=True
                )
                for name, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        found[name] += gradient**2
                count += 1
        return {name: total / max(1, count) for name, total in found.items()}

    def _extra(self) -> Any:
        return {"fisher": self._fisher, "pull": self._pull}

    def _set_extra(self, extra: Any, body: Body) -> None:
        for key in ("fisher", "pull"):
            found = extra.get(key) if isinstance(extra, Mapping) else None
            if not isinstance(found, dict) or not {*found} <= {*body.slots}:
                raise CheckpointError(f"the file lacks what EWC calls {key}")
            for name, value in found.items():
                if not isinstance(value, Tensor) or value.shape != body.slots[name].tensor.shape:
                    raise CheckpointError(f"the file has no {key} of {name}")
        self._fisher, self._pull = dict(extra["fisher"]), dict(extra["pull"])


def _named(study: Study, *, detached: bool = True) -> dict[str, Tensor]:
    """All parameters of a study but its head's, by slots' names."""
    found = {name: study.weight(name) for name in study.mine} | study.own_parameters
    return {name: p.detach().clone() if detached else p for name, p in found.items()}
