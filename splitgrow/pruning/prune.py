"""Pruning: the weakest units go, at once or in steps, until a share or a target is met."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.errors import SplitGrowError
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import History, check_structure
from splitgrow.growth.planning import checked_rounding
from splitgrow.pruning.choosing import (
    Candidates,
    Scope,
    as_request,
    find_candidates,
    weakest_units,
)
from splitgrow.pruning.criteria.criterion import Criterion, UnitsInView
from splitgrow.pruning.criteria.registry import chosen_criterion
from splitgrow.pruning.criteria.unit_parameters import ParametersOfUnits
from splitgrow.pruning.refitting import Fit, fits, put_fits_, refuse_refitting
from splitgrow.pruning.shrinking.chosen_units import requested_units
from splitgrow.pruning.shrinking.shrinking import take_out_
from splitgrow.pruning.target import Goals, Request, Sizes, Target, goals_of, share_for
from splitgrow.utils.preserve import copy_buffers_
from splitgrow.utils.rollback import Undo, temporarily

LossOf = Callable[[nn.Module, Any], Any]


@dataclass(frozen=True, eq=False)
class PruneSettings:
    """How units are chosen.

    Attributes:
        criterion: The scores of units.
        scope: Whether groups are compared with each other.
        layers: The layers whose units may go; None for all but the outputs.
        ignore: The layers whose units stay.
        keep: The share of each group's units that stays.
        refit: Whether readers are fitted.
        loss: The loss of the model on a batch.
        batches: The batches.
        round_to: The number of which widths that stay are multiples.
        give_up: Whether closed generations may lose units.

    Raises:
        TypeError: If one is of another type.
        ValueError: If one is out of range.
    """

    criterion: Criterion
    scope: Scope = "global"
    layers: tuple[int | str, ...] | None = None
    ignore: tuple[int | str, ...] = ()
    keep: float = 0.1
    refit: bool = False
    loss: LossOf | None = None
    batches: tuple[Any, ...] = ()
    round_to: int = 1
    give_up: bool = False

    def __post_init__(self) -> None:
        if self.scope not in get_args(Scope):
            raise ValueError(f"scope must be 'global' or 'layer', got {self.scope!r}")
        if isinstance(self.keep, bool) or not isinstance(self.keep, (int, float)):
            raise TypeError(f"keep must be a number, got {self.keep!r}")
        if not 0 <= self.keep < 1:
            raise ValueError(f"keep (={self.keep:g}) must be at least 0 and less than 1")
        if self.loss is not None and not callable(self.loss):
            raise TypeError(
                f"loss must be a function of the model and a batch, got {self.loss!r:.80}"
            )
        checked_rounding(self.round_to)


def settings_of(  # noqa: PLR0913
    *,
    criterion: object,
    scope: Any,
    layers: object,
    ignore: object,
    keep: float,
    refit: bool | None,
    loss: LossOf | None,
    batches: object,
    round_to: int,
    give_up: bool,
) -> PruneSettings:
    """The settings of `prune`, from its arguments.

    Raises:
        TypeError: If one is of another type.
        ValueError: If one is out of range.
    """
    chosen = chosen_criterion(criterion)
    if not isinstance(batches, Sequence) and not hasattr(batches, "__iter__"):
        raise TypeError(f"batches must be an iterable of batches, got {type(batches).__name__}")
    if isinstance(batches, Tensor):
        raise TypeError("batches must be an iterable of batches, got one tensor; give [tensor]")
    return PruneSettings(
        *(chosen, scope),
        None if layers is None else _names("layers", layers),
        _names("ignore", ignore),
        keep,
        chosen.refits if refit is None else refit,
        loss,
        tuple(batches),
        round_to,
        give_up,
    )


def _names(what: str, given: object) -> tuple[int | str, ...]:
    if isinstance(given, (str, int)) or not hasattr(given, "__iter__"):
        raise TypeError(f"{what} must be a list of layers by name or index, got {given!r}")
    return tuple(given)


@dataclass(frozen=True, eq=False)
class PrunePlan:
    """All steps of a pruning: the units that there were, and the goals.

    Attributes:
        settings: How units are chosen.
        amount: The share of the units that goes in the end; None if there is a target.
        goals: By "macs", "params" or "latency" today's number and the one in the end.
        widths: By group, as its makers' names, the number of units before the first step.
        steps: The number of steps.
    """

    settings: PruneSettings
    amount: float | None
    goals: Mapping[str, tuple[float, float]]
    widths: Mapping[tuple[str, ...], int]
    steps: int

    def goals_at(self, step: int) -> Goals:
        """The goals of a step, from 1: the numbers fall in equal parts."""
        share = step / self.steps
        return {name: now + (end - now) * share for name, (now, end) in self.goals.items()}

    def candidates(self, graph: ChannelGraph) -> Candidates:
        """The groups that may lose units, with those that must stay of the first ones."""
        own = self.settings
        found = find_candidates(graph, own.layers, own.ignore, 0.0, own.round_to)
        stays = {
            group: max(1, math.ceil(own.keep * self.widths.get(key_of(graph, group), width)))
            for group, width in found.widths.items()
        }
        return replace(found, stays=stays)

    def share_at(self, step: int, candidates: Candidates, graph: ChannelGraph) -> float:
        """The share of the present units that goes in a step, for an amount."""
        assert self.amount is not None
        first = sum(self.widths.get(key_of(graph, g), w) for g, w in candidates.widths.items())
        wanted = first * (1 - self.amount * step / self.steps)
        return max(0.0, 1 - wanted / candidates.units)


def key_of(graph: ChannelGraph, group: int) -> tuple[str, ...]:
    """A name for a group that lasts when the model is analysed anew."""
    makers = sorted(graph.makers(group))
    node = graph.nodes[makers[0]]
    return (*makers, str(graph.growing_groups(node.outs).index(group)))


def make_prune_plan(
    _undo: Undo,
    model: nn.Module,
    history: History,
    settings: PruneSettings,
    amount: object,
    target: object,
    steps: object,
) -> PrunePlan:
    """The plan of a pruning.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If one is out of range, or not just one of amount and target is given.
        FixedWidthError: If there is nothing that can go.
    """
    check_structure(model, history)
    if (amount is None) == (target is None):
        raise ValueError("give either `amount`, the share of units that goes, or `target`")
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise TypeError(f"steps must be an int, got {steps!r}")
    if steps < 1:
        raise ValueError(f"steps (={steps}) must be at least 1")
    if settings.refit:
        refuse_refitting(history)
    found = find_candidates(
        history.graph, settings.layers, settings.ignore, settings.keep, settings.round_to
    )
    widths = {key_of(history.graph, group): width for group, width in found.widths.items()}
    if target is None:
        if isinstance(amount, bool) or not isinstance(amount, (int, float)):
            raise TypeError(f"amount must be a number, got {amount!r}")
        if not 0 < amount < 1:
            raise ValueError(
                f"amount (={amount:g}) is the share of units that goes: between 0 and 1"
            )
        return PrunePlan(settings, float(amount), {}, widths, steps)
    if not isinstance(target, Target):
        raise TypeError(f"target must be a splitgrow.Target, got {target!r}")
    goals = goals_of(target, Sizes(model, give_up=settings.give_up))
    return PrunePlan(settings, None, goals, widths, steps)


def prune_step_(
    undo: Undo,
    model: nn.Module,
    history: History,
    plan: PrunePlan,
    step: int,
    *,
    optimizer: list[Optimizer],
    check: bool,
) -> Edit | None:
    """One step: scores the units, and takes out the weakest.

    Returns:
        The edit; None if no unit goes in this step.
    """
    sizes = Sizes(model, give_up=plan.settings.give_up)
    view, request = chosen_request(model, history, plan, step, sizes)
    if not request:
        return None
    own = plan.settings
    found = _fits(view, request) if own.refit else []
    before = _macs(sizes)
    edit = take_out_(
        *(undo, model, history),
        {name: list(channels) for name, channels in request.items()},
        round_to=1,
        give_up=own.give_up,
        optimizer=optimizer,
        check=check,
        prepare=partial(put_fits_, history, found, undo) if found else None,
    )
    after = _macs(Sizes(model))
    macs = None if before is None or after is None else (before, after)
    edit = replace(edit, criterion=own.criterion.name, macs=macs)
    history.edits = [*history.edits[:-1], edit]
    return edit


def chosen_request(
    model: nn.Module, history: History, plan: PrunePlan, step: int, sizes: Sizes
) -> tuple[UnitsInView, Request]:
    """The channels that go in a step, by layer; the model stays as it is.

    Raises:
        ValueError: If the criterion lacks data, or the goals cannot be met.
    """
    check_structure(model, history)
    graph, own = history.graph, plan.settings
    candidates = plan.candidates(graph)
    units = ParametersOfUnits(graph, history.modules, candidates.widths)
    view = UnitsInView(model, history, units, own.loss, own.batches)
    scores = scores_in(view, own.criterion)

    def request(share: float) -> Request:
        found = weakest_units(
            candidates, scores, share, own.scope, comparable=own.criterion.comparable
        )
        return as_request(graph, found)

    if plan.amount is not None:
        share = plan.share_at(step, candidates, graph)
    else:
        share = share_for(plan.goals_at(step), sizes, request)
    return view, request(share)


@temporarily
def scores_in(undo: Undo, view: UnitsInView, criterion: Criterion) -> dict[int, Tensor]:
    """The scores of all units.

    Raises:
        ValueError: If they do not fit the units, or are not finite, or there are none.
    """
    copy_buffers_(view.model.modules(), undo)
    found = dict[int, Tensor]()
    for group, own in criterion.scores(view).items():
        start, end = view.units.groups.get(group, (0, 0))
        own = torch.as_tensor(own).detach().cpu()
        if own.shape != (end - start,):
            raise ValueError(
                f"criterion {criterion.name!r} gives scores of the shape {tuple(own.shape)} to a "
                f"group of {end - start} units"
            )
        if not bool(own.isfinite().all()):
            raise ValueError(f"criterion {criterion.name!r} gives scores that are not finite")
        found[group] = own
    if not found:
        raise ValueError(
            f"criterion {criterion.name!r} has scores for none of the units; choose another one"
        )
    return found


def _fits(view: UnitsInView, request: Request) -> list[Fit]:
    history = view.history
    asked: dict[int | str, int | Sequence[int]] = {n: list(c) for n, c in request.items()}
    units: Mapping[int, Collection[int]] = requested_units(history.graph, history.modules, asked, 1)
    return fits(view, units)


def _macs(sizes: Sizes) -> int | None:
    """The multiply-adds for one sample; None if they cannot be counted."""
    try:
        return round(sizes.macs / max(sizes.samples, 1))
    except SplitGrowError:
        return None
