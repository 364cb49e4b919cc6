"""Progressive Networks: a new column for every task, which reads all columns before it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from splitgrow.continual.masked import MaskedLearner
from splitgrow.continual.options import LearnerOptions
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.studies import Study
from splitgrow.continual.tasks import Task
from splitgrow.continual.units import Units
from splitgrow.growth.initializers import Zero
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.utils.spans import laid_along


class ProgressiveNetworks(MaskedLearner):
    r"""Progressive Networks (Rusu et al., Progressive Neural Networks, 2016).

    The first task trains the network, its first column. For every later one all layers gain units,
    a new column, which read the units of all columns below them,

    .. math:: h^{(k)}_i = f(W^{(k)}_i h^{(k)}_{i-1} + \sum_{j<k} U^{(k:j)}_i h^{(j)}_{i-1})

    (equation 1), and which no earlier column reads: the new columns are blocks without a helper
    into the old. Only the new column trains. The task's head reads the units of all columns.

    A column begins as a network of its own: its weights for columns below begin at zero, and its
    weights for itself are drawn as in a network of its width. If a unit reads m units of its column
    and n of others, its weights for others learn by m / n of the gradient, as if the units were
    scaled by :math:`\alpha = \sqrt{m / n}`: otherwise, the more columns there are below, the
    further they would take a step of training.

    Differences from the paper: the lateral connections are part of the layers themselves, without
    adapters of one more nonlinear layer, whose :math:`\alpha` is learned (section 2.1); norms of
    the older columns' units are every task's own, too, so that a task sees them scaled to its data.

    Args:
        column: The width of a new column, as a share of the network's first width.
        **common: The arguments of every learner; see `Learner`.

    Example:
        >>> import torch
        >>> from splitgrow.continual import ProgressiveNetworks, Task, Training
        >>> from torch import nn
        >>> x = torch.randn(64, 4)
        >>> net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> learner = ProgressiveNetworks(net, x[:1], training=Training(epochs=1))
        >>> record = learner.learn(Task("signs", 2, (x, (x[:, 0] > 0).long())))
        >>> learner.network("signs")[2]
        Linear(in_features=16, out_features=2, bias=True)
    """

    method = "progressive"
    settings = ("column",)

    def __init__(
        self,
        model: nn.Module,
        example_inputs: Tensor | tuple[Any, ...],
        *,
        column: float = 1.0,
        **common: Unpack[LearnerOptions],
    ) -> None:
        super().__init__(model, example_inputs, **common)
        if not column > 0:
            raise ValueError(f"column must be above 0, got {column!r}")
        self.column = column

    def _learn(self, task: Task, number: int) -> TaskRecord:
        earlier = Units(self.body)
        if number > 1:
            # Every growth is in proportion to the widths at that time.
            self._grow(task, 1 + self.column / (1 + self.column * (number - 2)), Apart())
        study = self._begin(task, mine=self._trains)
        if number > 1:
            self._set_apart_(study, earlier)
        self._train(study, task, "train")
        record = self._commit(study, task, self._judge(study, task, "train"))
        self._own_the_rest(number)
        return record

    def _set_apart_(self, study: Study, earlier: Units) -> None:
        """Makes a column learn at its own pace, and the head begin with zeros for columns below."""
        units = Units(self.body)
        fresh = units.since(earlier)
        grown = {unit.home for unit in fresh}
        below = units.marks({unit for unit in units.order if unit.home in grown} - fresh)
        for part in units.given(study.mine):
            if part.dims[1] is not None:
                _slow_down_(study.weight(part.slot), part.columns(below))
        below = units.on_features(below)
        with torch.no_grad():
            study.head.weight.copy_(_apart(study.head.weight, below))
        _slow_down_(study.head.weight, below)

    def _trains(self, name: str) -> Tensor:
        """Where a tensor trains: in new blocks, not in helpers, which older units would read."""
        free = self.body.free(name)
        helper = self.body.slots[name].block == "helper"
        return torch.zeros_like(free) if helper else free

    def _own_the_rest(self, number: int) -> None:
        """The zeros of helpers are the task's own, so that they stay."""
        self.body.own_all(number)


class Apart(Zero):
    """Makes new units begin as a network of their own width, which reads nothing of the old one."""

    name = "apart"

    def apply(self, prepared: PreparedEdit) -> None:
        """Sets the weights that read old units to zero, and scales those that read new ones up."""
        super().apply(prepared)
        new = {unit for units in prepared.units.values() for unit in units}
        for name, layer in prepared.layers.items():
            for key, places in prepared.places(name).items():
                whole, dim = layer.value(key), layer.reading_dim(key)
                if whole is None or dim is None:
                    continue
                below = [u.home in prepared.units and u not in new for u, _ in places[dim]]
                columns = laid_along(torch.tensor(below, device=whole.device), dim, whole.dim())
                layer.fill_(key, _apart(whole, columns))


def _shares(below: Tensor) -> tuple[int, int]:
    """The number of units that are read in columns below, and the number of others."""
    others = int(below.sum())
    return others, below.numel() - others


def _apart(weight: Tensor, below: Tensor) -> Tensor:
    """A weight that reads nothing of columns below, the rest scaled up.

    Args:
        weight: The weight.
        below: Which of its columns read them, as bools that are broadcast to it.
    """
    others, own = _shares(below)
    if not (own and others):
        return weight
    # It was drawn with a variance proportional to one over the number of units that are read.
    factors: Tensor = (below.numel() / own) ** 0.5 * ~below
    return weight * factors


def _slow_down_(weight: Tensor, below: Tensor) -> None:
    """Slows down the weights that read columns below, as in `_apart`."""
    others, own = _shares(below)
    if own and others:
        pace = torch.where(below, own / others, 1.0).to(weight.dtype)
        weight.register_hook(lambda gradient: gradient * pace)  # type: ignore[no-untyped-call]
