"""A policy at work: it counts the training's steps and arithmetic, and acts when it is time."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from splitgrow.errors import SplitGrowWarning
from splitgrow.grower.budget import Cycles
from splitgrow.grower.deciding import Decider
from splitgrow.grower.held_model import HeldModel
from splitgrow.grower.planned_growth import PlannedGrowth
from splitgrow.grower.planner import make_schedule
from splitgrow.grower.schedule import Schedule
from splitgrow.grower.scope import plan_growths
from splitgrow.grower.settings import (
    PASSES_OF_STEP,
    GrowerSettings,
    check_policy,
    number_of_changes,
    plain_metrics,
)
from splitgrow.grower.to import Factor, To
from splitgrow.grower.when import Progress, When
from splitgrow.grower.where import All, Where
from splitgrow.growth.edits import Edit
from splitgrow.growth.initializers import Initializer
from splitgrow.growth.multiply_adds import MacsCounter
from splitgrow.pruning.criteria.criterion import Criterion
from splitgrow.utils.json_records import read_record, written
from splitgrow.utils.schedulers import Schedulers

_VERSION = 1


@dataclass
class GrowerState:
    """A policy's progress, as plain data.

    Attributes:
        step: The optimizer steps so far.
        growths: The growths and shrinks so far.
        macs_spent: The multiply-adds of the training so far.
        macs: Those of a forward pass for one sample, as the model is.
        samples: The samples of a step that does not say how many it saw.
        edits: The number of the model's edits when the macs were counted.
        absorb_at: The step after which grown layers become plain; None if none are to.
        widths: The widths of the layers, by name.
        notes: Those of the rule that says when.
        schedule: The plan.
        policy: The policy in words.
    """

    schedule: object
    policy: str
    step: int = 0
    growths: int = 0
    macs_spent: int = 0
    macs: int = 0
    samples: int = 1
    edits: int = 0
    absorb_at: int | None = None
    widths: Mapping[str, int] = field(default_factory=dict)
    notes: object = field(default_factory=dict)
    version: int = _VERSION


class Grower:
    """Grows or shrinks a model while it trains, by a policy: where, when and how much.

    All is planned before the training: `plan` shows it.

    Call `step` after each optimizer step. Everything trains on (`freeze=False`), and grown layers
    become plain again (`absorb=True`), so that a step of the grown model costs what one of a plain
    model does. The model's outputs keep their widths, unless they are named.

    Args:
        model: A growable model; also compiled, in DistributedDataParallel, or sharded by
            `fully_shard`. Then make the grower, and call `step`, in every process: the first one's
            metrics and samples count.
        optimizer: One or several optimizers, which take over new parameters; None if you see to
            that by yourself.
        scheduler: The learning rate schedulers of the optimizer, if there are any. New parameters
            have rates relative to those of their groups, so schedulers go on by themselves.
        to: How much it grows or shrinks: `Factor`, `ToWidths` or `Budget`; or `Cycles`, which grow
            it beyond a budget and prune it back. By default to twice the widths.
        when: When it grows: `Every`, `ComputeShares`, `Plateau` or `Gap`.
        where: Where it grows: `All` or `Score`. By default in all layers but the outputs.
        steps: How many growths or shrinks, with equal factors between; by default 3, or as
            many as `when` or `to` sets.
        init: The initializer of new blocks, by name or an object: `initializer` of `expand_layer`.
        lr_scale: The learning rate of new parameters, relative to that of their group. Unless it is
            1, nothing is absorbed: the new parameters keep blocks of their own.
        warmup: The number of optimizer steps over which that rate rises from 0. Nothing is absorbed
            before it ends.
        round_to: The number of which widths are multiples, such as 8.
        freeze: Whether the first growth freezes all that exists: growing without forgetting. Then
            `absorb` must be False.
        absorb: Whether grown layers become plain again, which `model.absorb` does.
        loss: A closure that runs the model and returns a loss, for initializers and criteria that
            need data.
        callbacks: Called with the `Edit` after each growth or shrink.
        criterion: The units that go where the model shrinks: those with the lowest scores, by the
            name of a criterion, as in `model.prune`, or an object.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If names, widths or settings do not fit.
        FixedWidthError: If a layer that is named cannot grow, or none can.
        OptimizerError: If the optimizer does not train a layer that will grow.
        SplitGrowError: If the model is not growable, or its arithmetic cannot be counted.

    Example:
        >>> import torch, splitgrow
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> net = splitgrow.growable(net, torch.ones(4, 2))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> grower = splitgrow.Grower(
        ...     net, optimizer, to=splitgrow.Factor(2.0), when=splitgrow.Every(5), steps=2
        ... )
        >>> print(grower.plan())
        2 growths to 2 times the widths
          growth  moment           parameters  macs a sample  macs spent by then
          start   before training          33             24                   0
          1       step 5                   45             33              1.44 k
          2       step 10                  65             48              3.42 k
        <BLANKLINE>
          layer  start   1   2
          0          8  11  16
          2          1   .   .
        left alone: 2 (an output of the model, which grows if it is named)
        >>> for _ in range(10):
        ...     optimizer.zero_grad()
        ...     net(torch.ones(4, 2)).square().mean().backward()
        ...     optimizer.step()
        ...     edit = grower.step()
        >>> net.layers[0].width, grower.done, grower.macs_spent
        (16, True, 3420)
    """

    def __init__(  # noqa: PLR0913
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer] | None,
        scheduler: Schedulers | None = None,
        *,
        to: To | None = None,
        when: When,
        where: Where | None = None,
        steps: int | None = None,
        init: str | Initializer = "zero",
        lr_scale: float = 1.0,
        warmup: int = 0,
        round_to: int = 1,
        freeze: bool = False,
        absorb: bool = True,
        loss: Callable[[], Tensor] | None = None,
        callbacks: Iterable[Callable[[Edit], object]] = (),
        criterion: str | Criterion = "group",
    ) -> None:
        self._to = Factor(2.0) if to is None else to
        self._where = All() if where is None else where
        self._when = when
        check_policy(self._to, when, self._where)
        count = number_of_changes(steps, when, self._to)
        self._callbacks = [callbacks] if callable(callbacks) else list(callbacks)
        if not all(map(callable, self._callbacks)):
            raise TypeError(f"callbacks are functions of an edit, got {self._callbacks!r}")
        self._held = HeldModel(model)
        self._settings = GrowerSettings(
            init, optimizer, lr_scale, warmup, scheduler, round_to, freeze, absorb, loss, criterion
        )
        self._settings.check(self._held)
        measure = self._held.measure()
        moves = isinstance(self._to, Cycles)
        climb = plan_growths(
            self._held.model,
            self._to,
            self._where,
            1 if moves else count,
            self._settings.fit,
            lambda: measure,
        )
        self._settings.check_planned(self._held, climb, self._where, moves=moves)
        self._schedule = make_schedule(
            self._held, climb, self._settings, measure, (when, self._where), moves=moves
        )
        self._decider = Decider(self._held, self._to, self._where, self._settings)
        self._state = GrowerState({}, f"to={self._to!r}, when={when!r}, where={self._where!r}")
        self._measured(measure)
        if self.done and not self._held.handle.edits:
            warnings.warn(
                f"nothing will grow or shrink: {self._to!r} leaves every layer as it is, since no "
                f"other width fits",
                SplitGrowWarning,
                stacklevel=2,
            )

    @property
    def macs(self) -> int:
        """The multiply-adds of one forward pass for one sample, as the model is.

        They are those that torch.utils.flop_counter counts on the example inputs, of which the
        first dimension of the first tensor is the number of samples.
        """
        self._count_again()
        return self._state.macs

    @property
    def macs_spent(self) -> int:
        """The multiply-adds of the training so far: three forward passes for each sample."""
        return self._state.macs_spent

    @property
    def done(self) -> bool:
        """Whether all growths and shrinks are done."""
        return not any(growth.request for growth in self._schedule.growths[self._state.growths :])

    def plan(self) -> Schedule:
        """The whole plan, from before the training: print it, draw it, or read its rows."""
        return self._schedule

    def step(
        self, metrics: Mapping[str, Any] | None = None, *, samples: int | None = None
    ) -> Edit | None:
        """Takes note of an optimizer step, and grows or shrinks the model if it is time.

        Call it after ``optimizer.step()`` and before the next forward pass.

        Args:
            metrics: Numbers by name, for `Plateau` and `Gap`; leave it out in steps without new
                ones.
            samples: The number of samples that this process saw in the step; by default as many as
                the example inputs have.

        Returns:
            The growth or shrink; None if there was none.

        Raises:
            TypeError: If an argument is of another type.
            ValueError: If a metric is missing or not finite, or `samples` is negative.
            SplitGrowError: As `model.expand` and `model.shrink`; model, optimizer and grower are as
                before the call.
        """
        given = self._agreed(plain_metrics(metrics), self._samples(samples))
        before = deepcopy(self._state)
        try:
            edit = self._step(*given)
        except BaseException:
            self._state = before
            raise
        if edit is not None:
            for callback in self._callbacks:
                callback(edit)
        return edit

    def _samples(self, samples: int | None) -> int:
        if samples is None:
            return self._state.samples
        if isinstance(samples, bool) or not isinstance(samples, int):
            raise TypeError(f"samples must be an int, got {samples!r}")
        if samples < 0:
            raise ValueError(f"samples (={samples}) must be at least 0")
        return samples

    def _agreed(
        self, metrics: dict[str, float] | None, samples: int
    ) -> tuple[dict[str, float] | None, int]:
        if self._when.observes and not self.done:
            return self._held.agreed((metrics, samples))
        return metrics, samples

    def _step(self, metrics: dict[str, float] | None, samples: int) -> Edit | None:
        state = self._state
        self._count_again()
        state.step += 1
        state.macs_spent += PASSES_OF_STEP * state.macs * samples * self._held.processes
        if state.absorb_at is not None and state.step >= state.absorb_at:
            self._held.absorb(self._settings.optimizer)
            state.absorb_at, state.edits = None, len(self._held.handle.edits)
        if self.done:
            return None
        assert isinstance(state.notes, dict)
        now = Progress(state.step, state.growths, state.macs_spent, metrics, state.notes)
        return self._change() if self._when.due(now) else None

    def _change(self) -> Edit | None:
        """Does what the plan says; the state is put back by the caller if that fails."""
        state = self._state
        planned = self._schedule.growths[state.growths]
        edit = self._shrink(planned) if planned.shrinks else self._grow(planned)
        state.growths += 1
        state.notes = {}
        if edit is not None:
            if self._decider.widths() == planned.widths:
                state.macs, state.edits = planned.macs, len(self._held.handle.edits)
            else:
                self._count_again()
        return edit

    def _grow(self, planned: PlannedGrowth) -> Edit | None:
        state, settings = self._state, self._settings
        request = self._decider.gains(planned)
        absorbs = settings.absorb and settings.lr_scale == 1
        at_once = absorbs and not settings.warmup
        edit = self._held.expand(request, settings.options, absorb=at_once) if request else None
        if edit is not None and absorbs and settings.warmup:
            state.absorb_at = state.step + settings.warmup
        return edit

    def _shrink(self, planned: PlannedGrowth) -> Edit | None:
        channels = self._decider.surplus(planned)
        return self._held.shrink(channels, self._settings.optimizer) if channels else None

    def _count_again(self) -> None:
        """Counts the multiply-adds anew, if the model has changed since."""
        if len(self._held.handle.edits) != self._state.edits:
            self._measured(self._held.measure())

    def _measured(self, measure: MacsCounter) -> None:
        self._state.macs, self._state.samples = measure.macs, measure.samples
        self._state.edits = len(self._held.handle.edits)

    def state_dict(self) -> dict[str, Any]:
        """The grower's state as plain data: give it to `splitgrow.save` as `extra`.

        With it, the model and the optimizer, a run that was stopped grows on as if it had not been.
        """
        self._state.widths = self._decider.widths()
        self._state.schedule = self._schedule.to_data()
        data: dict[str, Any] = written(deepcopy(self._state))
        return data

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state, all or nothing. Load the model first.

        Args:
            state: What `state_dict` returned.

        Raises:
            ValueError: If it is no such state, is of another policy, or the model has other widths
                than when it was saved.
        """
        try:
            data = json.loads(json.dumps(state))  # tuples are lists in JSON
        except (TypeError, ValueError) as error:
            raise ValueError(f"the state is no plain data: {error}") from None
        if not isinstance(data, dict) or data.get("version") != _VERSION:
            raise ValueError(f"not the state of a grower of version {_VERSION}: {state!r:.80}")
        loaded = read_record(GrowerState, data, "state")
        schedule = Schedule.from_data(loaded.schedule)
        if not isinstance(loaded.notes, dict):
            raise ValueError(f"state.notes is {loaded.notes!r}, which is no mapping")
        if loaded.policy != self._state.policy:
            raise ValueError(
                f"the state is that of another policy: {loaded.policy}; this one is "
                f"{self._state.policy}"
            )
        if not 0 <= loaded.growths <= len(schedule.growths):
            raise ValueError(f"state.growths is {loaded.growths} of {len(schedule.growths)}")
        now = self._decider.widths()
        other = [
            f"`{n}` has {now.get(n, 0)}, not {w}"
            for n, w in loaded.widths.items()
            if now.get(n) != w
        ]
        if other:
            raise ValueError(
                f"the model is not the one of this state: {', '.join(other[:3])} units; load the "
                f"model of the same checkpoint first"
            )
        loaded.edits = len(self._held.handle.edits)
        self._state, self._schedule = loaded, schedule
