"""PackNet: every task trains the free weights, and keeps the largest of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from typing_extensions import Unpack

from splitgrow.continual.masked import MaskedLearner
from splitgrow.continual.options import LearnerOptions
from splitgrow.continual.pruning import keep_largest
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.studies import Study
from splitgrow.continual.tasks import Task


class PackNet(MaskedLearner):
    r"""PackNet (Mallya & Lazebnik, PackNet: Adding Multiple Tasks to a Single Network, CVPR 2018).

    A task trains all free weights while it sees those of earlier tasks, section 3. Then a share of
    its trained weights is pruned in every layer, the smallest by magnitude,

    .. math:: |w| \le \text{the } \lceil p\,n \rceil\text{-th smallest of the layer's } n,

    and the rest is trained again for some epochs and is the task's from then on. The pruned weights
    are free for the next task.

    Differences from the paper: norms and biases are every task's own, where the paper freezes them
    after the first. The share is the same for every layer and task, as in the paper.

    Args:
        prune: The share of a task's weights that is pruned: a number for every task, or "even" to
            leave each of `expected_tasks` as much.
        retrain_epochs: The epochs after pruning; half of the training's by default.
        expected_tasks: The number of all tasks; "even" needs it.
        **common: The arguments of every learner; see `Learner`.

    Example:
        >>> import torch
        >>> from splitgrow.continual import PackNet, Task, Training
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> x = torch.randn(64, 4)
        >>> learner = PackNet(model, x[:1], training=Training(epochs=2), prune=0.75)
        >>> for sign in (1, -1):
        ...     record = learner.learn(Task(f"sign {sign}", 2, (x, (sign * x[:, 0] > 0).long())))
        >>> learner.predict(x, task="sign 1").shape
        torch.Size([64, 2])
    """

    method = "packnet"
    settings = ("prune", "retrain_epochs", "expected_tasks")

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Tensor | tuple[Any, ...],
        *,
        prune: float | str = 0.75,
        retrain_epochs: int | None = None,
        expected_tasks: int | None = None,
        **common: Unpack[LearnerOptions],
    ) -> None:
        super().__init__(model, example_inputs, **common)
        if prune == "even":
            if expected_tasks is None or expected_tasks < 1:
                raise ValueError('prune="even" needs expected_tasks')
        elif isinstance(prune, str) or not 0 <= prune < 1:
            raise ValueError(f'prune must lie between 0 and 1, or be "even", got {prune!r}')
        if retrain_epochs is not None and retrain_epochs < 0:
            raise ValueError(f"retrain_epochs (={retrain_epochs}) must not be negative")
        self.prune, self.expected_tasks = prune, expected_tasks
        default = (self.training.epochs + 1) // 2
        self.retrain_epochs = default if retrain_epochs is None else retrain_epochs

    def _learn(self, task: Task, number: int) -> TaskRecord:
        study = self._begin(task)
        self._train(study, task, "train")
        before = self._judge(study, task, "train")
        share = self._share_of(number)
        prune_(study, share)
        if share and self.retrain_epochs:
            self._train(study, task, f"retrain at {share:.2f}", epochs=self.retrain_epochs)
        after = self._judge(study, task, "prune")
        record = self._commit(study, task, after)
        record.details = {"accuracy before pruning": before, "pruned": share}
        return record

    def _share_of(self, number: int) -> float:
        if isinstance(self.prune, str):
            left = max(1, (self.expected_tasks or number) - number + 1)
            return 1 - 1 / left
        return self.prune


def prune_(study: Study, share: float) -> None:
    """Prunes a share of a study's trained weights in every tensor, the smallest by magnitude."""
    for name, mask in study.mine.items():
        keep = int(mask.sum()) - round(share * int(mask.sum()))
        study.keep_only(name, keep_largest(study.weight(name), mask, keep))
