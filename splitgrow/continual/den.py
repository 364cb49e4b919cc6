"""Dynamically expandable networks: selective retraining, expansion, and splits of drifted units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from splitgrow.analysis.units import Unit
from splitgrow.continual.events import Grown
from splitgrow.continual.options import LearnerOptions
from splitgrow.continual.proximal import drift_of, lower_, pull_, pull_back_, shrink_, soften_
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.regrowth import (
    Drawn,
    UnitValues,
    all_values,
    disconnect_,
    draw_head_,
    regrow_,
    split_,
    widened_head,
    without_,
)
from splitgrow.continual.selective import Course, SelectiveLearner
from splitgrow.continual.settings import checked_goal, goal_for
from splitgrow.continual.stages import seed_of
from splitgrow.continual.studies import Study
from splitgrow.continual.tasks import Task
from splitgrow.continual.units import Units


class DEN(SelectiveLearner):
    r"""Dynamically Expandable Networks (Yoon et al., Lifelong Learning with DEN, ICLR 2018).

    A unit is a channel with all layers that make it and on all positions where it lies, as in the
    channel graph: the layers of a residual path make its units together, and flattening puts one
    unit on several features. So the method fits any depth and architecture. The incoming weights
    :math:`w_i` of a unit are its rows in all layers that make it.

    The first task trains all weights under :math:`L(W) + \mu \|W\|_1`. A later one takes the steps
    of the paper's section 3:

    1. *Selective retraining.* Only its head is trained, with an L1 norm. A breadth-first search
       starts at the nonzero weights of the head and goes backwards through all nonzero weights.
       Only weights between the units that it finds are trained, with an L2 norm.
    2. *Dynamic expansion*, if it misses `threshold`. Every layer gains `units`, on trial. There
       only the new weights train, with an L1 norm and a group lasso,

       .. math:: L(W^N) + \mu \|W^N\|_1 + \gamma \sum_g \|W^N_g\|_2.

       The group of a new unit is its incoming weights; if it goes through batch, instance or group
       norms, the scales of these, since the size of its weights has no effect there. Units whose
       group ends as zero are useless, and are taken out again as by `model.shrink`.
    3. *Splitting and duplication.* If the incoming weights of a unit have drifted,
       :math:`\rho_i = \|w_i^t - w_i^{t-1}\|_2 > \sigma`, it gets its earlier ones back, and a new
       unit gets the new ones. Then all chosen and new weights train once more. Here and in
       selective retraining, :math:`\lambda \|W - W^{t-1}\|_2^2` keeps weights near their earlier
       values.
    4. *Timestamped inference.* A task's network has the units that there were when it was learned,
       never any that came later.

    The guarantee: of the units that earlier tasks see, none has incoming weights further than
    :math:`\sigma` from those before the task, in the 2-norm of all of them together; after n more
    tasks, than :math:`n \sigma`. Weights that are not between chosen units stay bit for bit, and so
    do an earlier task's biases, its norms' tensors and its head. A task's outputs are therefore bit
    for bit the same until a weight of its network is retrained; with ``drift=0`` forever. The bound
    holds for weights: the outputs of a task that shares retrained weights do change.

    Differences from the paper: a projection of every unit's incoming weights into the ball of
    radius :math:`\sigma` around their earlier values, after each step of the last training, bounds
    the drift; in the paper nothing keeps them from drifting again. Units that cannot be duplicated,
    since their width is tied to something that cannot grow, are held in that ball in place of being
    split. An accuracy decides on growth, not a loss. All norms are proximal steps scaled by the
    learning rate, so that zeros are exact and the factors are those of the equations. A new unit
    begins with its group half as large as the group lasso removes in that training, if its length
    is known, but not below a twentieth of the drawn size: so a unit that the loss does not hold up
    is zero before the end of a short training, too. A new unit whose group is zero is silenced at
    once: the weights that read it become zero as well, so its removal changes nothing, where the
    paper drops its bias. Earlier units may read new ones, which only the new task sees. Those that
    have a duplicate to read go on reading the old unit, and begin with zero for the duplicate,
    while new units and the head read it in place of the old one. Biases and norms are every task's
    own; tensors that do not run along channels, such as a position embedding, train with the first
    task alone. If nothing was split or held back, there is no last training.

    Args:
        threshold: The accuracy below which a task expands the network, better than guessing (one
            divided by the number of its classes) and at most 1, on the data that decisions are made
            on; one for all tasks, or one by task name. None for that of a network of the same
            architecture that is trained on the task alone.
        drift: The threshold :math:`\sigma` of drift, and its bound: 0 to forget nothing, at the
            price of a duplicate of every unit that is retrained; ``math.inf`` to never split.
        units: The channels that every layer gains, before useless units are removed; 0 to never
            expand. If they only come in larger steps (heads, groups), the next larger number.
        largest: The most weights, in multiples of the first network's, at which an expansion may
            begin; None for no bound. Splitting has no bound, since it bounds the drift.
        l1: The factor :math:`\mu` of L1 norms.
        l2: The weight decay, in place of the training's, in all steps without an L1 norm.
        group_lasso: The factor :math:`\gamma` of the group lasso.
        pull: The factor :math:`\lambda` that keeps weights near their earlier values.
        select_epochs: The epochs of training the head alone; half of the training's by default.
        settle_epochs: The epochs of the last training; half of the training's by default.
        **common: The arguments of every learner; see `Learner`.

    Example:
        >>> import torch
        >>> from splitgrow.continual import DEN, Task, Training
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
        >>> x = torch.randn(64, 4)
        >>> learner = DEN(model, x[:1], training=Training(epochs=2), units=3, drift=0.0)
        >>> for sign in (1, -1):
        ...     record = learner.learn(Task(f"sign {sign}", 2, (x, (sign * x[:, 0] > 0).long())))
        >>> learner.network("sign 1")[0]
        Linear(in_features=4, out_features=16, bias=True)
    """

    method = "den"
    frozen = False
    settings = (
        "threshold",
        "drift",
        "units",
        "largest",
        "l1",
        "l2",
        "group_lasso",
        "pull",
        "select_epochs",
        "settle_epochs",
    )

    def __init__(  # noqa: PLR0913
        self,
        model: nn.Module,
        example_inputs: Tensor | tuple[Any, ...],
        *,
        threshold: float | Mapping[str, float] | None = None,
        drift: float = 0.1,
        units: int = 10,
        largest: float | None = None,
        l1: float = 1e-3,
        l2: float = 1e-4,
        group_lasso: float = 1e-2,
        pull: float = 1.0,
        select_epochs: int | None = None,
        settle_epochs: int | None = None,
        **common: Unpack[LearnerOptions],
    ) -> None:
        super().__init__(model, example_inputs, **common)
        if isinstance(units, bool) or not isinstance(units, int) or units < 0:
            raise ValueError(f"units must be an int of at least 0, got {units!r}")
        for name, value in (("l1", l1), ("l2", l2), ("group_lasso", group_lasso), ("pull", pull)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
        if not drift >= 0:
            raise ValueError(f"drift must be a number of at least 0, got {drift!r}")
        if largest is not None and not largest >= 1:
            raise ValueError(f"largest must be at least 1, got {largest!r}")
        self.threshold = checked_goal("threshold", threshold)
        self.drift, self.units, self.largest = drift, units, largest
        self.l1, self.l2, self.group_lasso, self.pull = l1, l2, group_lasso, pull
        half = (self.training.epochs + 1) // 2
        self.select_epochs = half if select_epochs is None else select_epochs
        self.settle_epochs = half if settle_epochs is None else settle_epochs

    def _learn(self, task: Task, number: int) -> TaskRecord:
        course, goal, details = self._begin(task), None, {}
        if number == 1:
            self._train_all(course)
        else:
            goal = self._goal_of(task, goal_for(task, "threshold", self.threshold))
            details = self._learn_more(course, goal)
        reached = self._judge(self._study(course, {}), task, "in the end", goal)
        return TaskRecord(
            name=task.name,
            number=number,
            classes=task.classes,
            edit=self.body.edit,
            head=course.values.head,
            own=course.values.own,
            accuracy=reached,
            details={**details, "expansion": self.body.size / self.body.weights},
        )

    def _learn_more(self, course: Course, goal: float) -> dict[str, Any]:
        """Learns a task after others; returns the details for its record."""
        self._select(course)
        details: dict[str, Any] = {"goal": goal, "selected": course.units.counts(course.chosen)}
        reached = details["after retraining"] = self._retrain(course, goal)
        if reached < goal and self.units and self._has_room:
            details |= self._expand(course)
        return details | self._split(course)

    @property
    def _has_room(self) -> bool:
        return self.largest is None or self.body.size < self.largest * self.body.weights

    def _expand(self, course: Course) -> dict[str, Any]:
        """Grows by those of some new units that prove useful."""
        units, values = course.units, course.values
        growth = {group: -(-self.units // units.step(group)) for group in units.growing}
        if not growth:
            return {}
        torch.manual_seed(seed_of(self.seed, self._next, "expand"))
        self.body.grow_units(growth, Drawn())
        wider = Units(self.body)
        fresh = wider.since(units)
        head = widened_head(values.head, units, wider, lambda unit: unit)
        draw_head_(self.body, head, wider.on_features(wider.marks(fresh)))
        course.values = UnitValues(values.own, head)
        dead = self._tried(course, wider)
        course.units, course.values = without_(self.body, wider, course.values, dead)
        if course.units.since(units):
            self._tell_grown(course)
        course.chosen |= course.units.since(units)
        reached = self._judge(self._study(course, {}), course.task, "expand")
        return {
            "added": wider.counts(fresh - wider.chosen(dead)),
            "removed": wider.counts(wider.chosen(dead)),
            "after expansion": reached,
        }

    def _tried(self, course: Course, wider: Units) -> Tensor:
        """Trains new units alone; returns which of them are dead."""
        new = (part for part in wider.born_in(self.body.edit) if part.shared)
        shared = self.body.shared
        mine = {p.slot: torch.ones_like(shared[p.slot].tensor, dtype=torch.bool) for p in new}
        study = self._study(course, mine)
        fresh = wider.marks(wider.since(course.units))
        keep = self._keep_to_chosen(course, wider)
        weights = {name: study.weight(name) for name in mine}
        own = study.own_parameters
        groups = {**weights, **{part.slot: own[part.slot] for part in wider.scales}}
        if self.group_lasso:
            lower_(wider, groups, fresh, self.group_lasso * self._distance(course) / 2)

        def rule(study: Study, rate: float) -> None:
            keep(study, rate)
            for weight in weights.values():
                soften_(weight, rate * self.l1)
            dead = shrink_(wider, groups, fresh, rate * self.group_lasso)
            disconnect_(wider, study, weights, dead)

        self._fit(study, course, "expand", rule)
        self._take_over(study, course)
        return fresh & (wider.sizes(groups) == 0)

    def _split(self, course: Course) -> dict[str, Any]:
        """Gives earlier tasks their drifted units back, and trains once more."""
        drifts = self._drifts(course)
        drifted = course.units.chosen(drifts > self.drift)
        details: dict[str, Any] = {"drift before splitting": float(drifts.max())}
        if not drifted:
            return {**details, "drift": float(drifts.max())}
        units = course.units
        twins: dict[Unit, Unit] = {}
        growth: dict[int, int] = {}
        for unit in sorted(u for u in drifted if u.home in units.growing):
            group = int(unit.home)
            twins[Unit(group, units.width(group) + growth.get(group, 0))] = unit
            growth[group] = growth.get(group, 0) + 1
        held = drifted - {*twins.values()}
        details |= {"split": units.counts({*twins.values()}), "held": units.counts(held)}
        self._duplicate(course, growth, twins)
        self._settle(course)
        return {**details, "drift": float(self._drifts(course).max())}

    def _duplicate(
        self, course: Course, growth: Mapping[int, int], twins: Mapping[Unit, Unit]
    ) -> None:
        """Adds duplicates of units, and gives the units their earlier weights back."""
        units = course.units
        torch.manual_seed(seed_of(self.seed, self._next, "split"))
        study = self._study(course, {})
        course.units, course.values = regrow_(
            self.body,
            growth,
            units,
            all_values(study),
            study.head,
            lambda unit: twins.get(unit, unit),
        )
        self._tell_grown(course)
        split_(self.body, course.units, course.first, course.before, twins)
        parents = course.units.on_features(course.units.marks({*twins.values()}))
        with torch.no_grad():
            course.values.head.weight.masked_fill_(parents, 0.0)
        course.chosen |= {*twins}

    def _settle(self, course: Course) -> None:
        """Trains the chosen weights once more, held near to their earlier values."""
        mine = course.units.between(course.chosen)
        study = self._study(course, mine)
        keep, weights = self._keep_to_chosen(course), {n: study.weight(n) for n in study.mine}

        def rule(study: Study, rate: float) -> None:
            keep(study, rate)
            pull_(weights, course.before, rate * self.pull)
            pull_back_(course.units, weights, course.before, study.mine, self.drift)

        with torch.no_grad():
            rule(study, 0.0)
        if self.settle_epochs:
            self._fit(study, course, "settle", rule, epochs=self.settle_epochs)
        self._take_over(study, course)

    def _tell_grown(self, course: Course) -> None:
        size = self.body.size
        self._tell(Grown(course.task.name, size, size / self.body.weights))

    def _drifts(self, course: Course) -> Tensor:
        now = {name: slot.tensor for name, slot in self.body.shared.items()}
        return drift_of(course.units, now, course.before)
