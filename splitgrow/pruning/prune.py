"""Pruning: the weakest units go, at once or in steps, until a share or a target is met."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import History, check_structure
from splitgrow.growth.planning import checked_rounding
from splitgrow.growth.probe import mean_of
from splitgrow.pruning.choosing import (
    PruneCandidates,
    PruneScope,
    Request,
    as_request,
    multiple_of,
    names_of,
    prunable_groups,
    weakest_units,
)
from splitgrow.pruning.criteria.criterion import Criterion, UnitsInView, preserve_runs_
from splitgrow.pruning.criteria.registry import chosen_criterion
from splitgrow.pruning.criteria.unit_parameters import ParametersOfUnits
from splitgrow.pruning.refitting import (
    ReaderFit,
    fitted_tensors,
    put_fits_,
    reader_fits,
    refuse_refitting,
)
from splitgrow.pruning.shrinking.chosen_units import requested_units
from splitgrow.pruning.shrinking.shrinking import take_out_
from splitgrow.pruning.target import (
    Goals,
    Sizes,
    Target,
    check_reachable,
    goals_of,
    share_for,
)
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
    scope: PruneScope = "global"
    layers: tuple[int | str, ...] | None = None
    ignore: tuple[int | str, ...] | None = ()
    keep: float = 0.1
    refit: bool = False
    loss: LossOf | None = None
    batches: tuple[Any, ...] = ()
    round_to: int = 1
    give_up: bool = False

    def __post_init__(self) -> None:
        if self.scope not in get_args(PruneScope):
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


def prune_settings(  # noqa: PLR0913
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
    if refit is not None and not isinstance(refit, bool):
        raise TypeError(f"refit must be True, False or None, got {refit!r}")
    if isinstance(batches, (Tensor, str, Mapping)) or not isinstance(batches, Iterable):
        kind = type(batches).__name__
        raise TypeError(f"batches must be a list of batches, or a loader, got a {kind}")
    return PruneSettings(
        *(chosen, scope, names_of("layers", layers), names_of("ignore", ignore), keep),
        *(chosen.refits if refit is None else refit, loss, tuple(batches), round_to, give_up),
    )


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

    def candidates(self, graph: ChannelGraph) -> PruneCandidates:
        """The groups that may lose units, and what of the first ones must stay."""
        own = self.settings
        widths = prunable_groups(graph, own.layers, own.ignore)
        return PruneCandidates(
            widths,
            {group: self.widths.get(key_of(graph, group), now) for group, now in widths.items()},
            {group: graph.multiples.get(group, (1, ""))[0] for group in widths},
            {group: multiple_of(graph, group, own.round_to) for group in widths},
            own.keep,
        )


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
    found = prunable_groups(history.graph, settings.layers, settings.ignore)
    widths = {key_of(history.graph, group): width for group, width in found.items()}
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
    request = choose_step(undo, model, history, plan, step)
    if not request:
        return None
    return prune_by_(undo, model, history, plan, request, optimizer=optimizer, check=check)


def choose_step(
    _undo: Undo, model: nn.Module, history: History, plan: PrunePlan, step: int
) -> Request:
    """The channels that go in a step, by layer; the model stays as it is."""
    if plan.settings.refit:
        refuse_refitting(history)
    sizes = Sizes(model, give_up=plan.settings.give_up)
    with torch.inference_mode(mode=False):  # whose tensors have no gradients
        return chosen_request(model, history, plan, step, sizes)


def prune_by_(
    undo: Undo,
    model: nn.Module,
    history: History,
    plan: PrunePlan,
    request: Request,
    *,
    optimizer: list[Optimizer],
    check: bool,
) -> Edit:
    """Takes out the channels that were chosen in a step."""
    own = plan.settings
    with torch.inference_mode(mode=False):
        found = _fits(prune_view(model, history, plan), request) if own.refit else []
    before = Sizes(model).macs_of_one
    edit = take_out_(
        *(undo, model, history, request),
        round_to=1,
        give_up=own.give_up,
        optimizer=optimizer,
        check=check,
        prepare=partial(put_fits_, history, found, undo) if found else None,
    )
    after = Sizes(model).macs_of_one
    edit = replace(
        edit,
        criterion=own.criterion.name,
        macs=None if before is None or after is None else (before, after),
        rewritten=tuple(dict.fromkeys((*edit.rewritten, *fitted_tensors(model, found)))),
    )
    history.edits = [*history.edits[:-1], edit]
    return edit


def prune_view(model: nn.Module, history: History, plan: PrunePlan) -> UnitsInView:
    """The units that may go, with all that criteria look at."""
    units = ParametersOfUnits(history.graph, history.modules, plan.candidates(history.graph).widths)
    return UnitsInView(model, history, units, plan.settings.loss, plan.settings.batches)


def chosen_request(
    model: nn.Module, history: History, plan: PrunePlan, step: int, sizes: Sizes
) -> Request:
    """The channels that go in a step, by layer; the model stays as it is.

    Raises:
        ValueError: If the criterion lacks data, or has no scores for a named layer, or the goals
            cannot be met.
    """
    check_structure(model, history)
    graph, own = history.graph, plan.settings
    candidates = plan.candidates(graph)
    scores = scores_in(prune_view(model, history, plan), own.criterion)
    missing = sorted({min(graph.makers(g)) for g in candidates.widths if g not in scores})
    if missing and (own.layers is not None or not scores):
        raise ValueError(
            f"criterion {own.criterion.name!r} has no scores for the units of "
            f"{', '.join(f'`{name}`' for name in missing)}; choose another one, or other layers"
        )

    def request(share: float) -> Request:
        found = weakest_units(
            candidates, scores, share, own.scope, comparable=own.criterion.comparable
        )
        return as_request(graph, found)

    share = plan.amount
    if share is not None:
        return request(share * step / plan.steps)
    check_reachable(plan.goals_at(plan.steps), sizes, request(1.0), missing)
    goals, count = plan.goals_at(step), sum(candidates.first[group] for group in scores)
    return request(share_for(goals, sizes, request, count))


@torch.inference_mode(mode=False)  # whose tensors have no gradients
@temporarily
def scores_in(undo: Undo, view: UnitsInView, criterion: Criterion) -> dict[int, Tensor]:
    """The scores of all units: of several processes that prune together the mean.

    Raises:
        ValueError: If they do not fit the units, or are not finite.
    """
    preserve_runs_(undo, view.model, random=not criterion.draws)
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
        found[group] = own.double()
    if not found:
        return found
    means = torch.split(mean_of(torch.cat([*found.values()])), [*map(len, found.values())])
    return dict(zip(found, means, strict=True))


@torch.inference_mode(mode=False)
@temporarily
def _fits(undo: Undo, view: UnitsInView, request: Request) -> list[ReaderFit]:
    preserve_runs_(undo, view.model, random=True)
    history = view.history
    return reader_fits(view, requested_units(history.graph, history.modules, request, 1))
