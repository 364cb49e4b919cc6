"""Progressive Networks: a new column for every task, which reads all columns before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from splitgrow.continual.masked import MaskedLearner
from splitgrow.continual.records import Record
from splitgrow.continual.tasks import Task


class ProgressiveNetworks(MaskedLearner):
    r"""Progressive Networks (Rusu et al., Progressive Neural Networks, 2016).

    The first task trains the network, its first column. For every later one all layers gain units,
    a new column, which read the units of all columns below them,

    .. math:: h^{(k)}_i = f(W^{(k)}_i h^{(k)}_{i-1} + \sum_{j<k} U^{(k:j)}_i h^{(j)}_{i-1})

    (equation 1), and which no earlier column reads: the new columns are blocks without a helper
    into the old. Only the new column trains. The task's head reads the units of all columns.

    Differences to the paper: the lateral connections are part of the layers themselves, without
    adapters of one more nonlinear layer (section 2.1); norms of the older columns' units are every
    task's own, too, so that a task sees them scaled to its data.

    Args:
        column: The width of a new column, as a share of the network's first width.
        **common: What every learner takes; see `Learner`.
    """

    method = "progressive"
    settings = ("column",)

    def __init__(self, *args: Any, column: float = 1.0, **common: Any) -> None:
        super().__init__(*args, **common)
        if not column > 0:
            raise ValueError(f"column must be above 0, got {column!r}")
        self.column = column

    def _learn(self, task: Task, number: int) -> Record:
        if number > 1:
            # Every growth is in proportion to the widths that there are by then.
            self._grow(task, 1 + self.column / (1 + self.column * (number - 2)))
        study = self._begin(task, mine=self._trains)
        self._train(study, task, "train")
        record = self._commit(study, task, self._judge(study, task, "train"))
        self._own_the_rest(number)
        return record

    def _trains(self, name: str) -> Tensor:
        """Where a tensor trains: in new blocks, not in helpers, which older units would read."""
        free = self.body.free(name)
        helper = self.body.slots[name].block == "helper"
        return torch.zeros_like(free) if helper else free

    def _own_the_rest(self, number: int) -> None:
        """The zeros of helpers are the task's own, so that they stay."""
        self.body.own_all(number)
