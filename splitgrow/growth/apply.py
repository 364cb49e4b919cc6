"""Growing a model: its history, and applying a planned edit, all or nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import Optimizer

from splitgrow.errors import InexactError
from splitgrow.growth.edit_check import Unchanged, before_edit
from splitgrow.growth.edits import Edit
from splitgrow.growth.growth_options import GrowthOptions
from splitgrow.growth.history import (
    History,
    check_structure,
    edits_of_tensors,
    keep_,
    note_grown_tensors_,
    structure,
)
from splitgrow.growth.initializers import Initializer, initialise_, quiet_added_, refuse_unfit
from splitgrow.growth.optimizers import NewParameter, group_name, join_, plan_joining
from splitgrow.growth.placing import widen_
from splitgrow.growth.planning import check_request, find_growth, make_plan, rounded_up
from splitgrow.growth.prepared import PreparedEdit, PreparedLayer, prepare
from splitgrow.layers.fade import FadeIn
from splitgrow.layers.freezing import freeze_, parameters_in, unfreeze_
from splitgrow.layers.module_state import take_state
from splitgrow.layers.tensor_holder import layer_at, split_of
from splitgrow.layers.types.parametrized_layers import own_tensors
from splitgrow.utils.rollback import Undo, temporarily


def plan(
    model: nn.Module,
    history: History,
    request: Mapping[int | str, int],
    *,
    freeze: bool,
    round_to: int = 1,
    initializer: Initializer,
) -> Edit:
    """The edit for a request, not applied."""
    check_structure(model, history)
    opened = history.next_edit(freeze=freeze)
    graph, way = history.graph, initializer.way
    checked = check_request(graph, request)
    checked = rounded_up(graph, checked, round_to, way)
    growth = find_growth(graph, checked, way)
    edit = make_plan(
        graph, history.modules, growth, history.edits, opened, request=checked, way=way
    )
    if initializer.needs_unfrozen or initializer.divides > 1:
        found = {c.name: layer_at(history.modules, c.name, c.use) for c in edit.changes}
        layers = {name: split_of(module) for name, module in found.items()}
        refuse_unfit(initializer, edit, graph, layers)
    return replace(edit, initializer=initializer.name)


def expand_(  # noqa: PLR0913
    undo: Undo,
    model: nn.Module,
    history: History,
    request: Mapping[int | str, int],
    *,
    freeze: bool,
    round_to: int,
    options: GrowthOptions,
    optimizer: list[Optimizer],
) -> Edit:
    """Adds units to layers: plans the edit, then applies it."""
    chosen = options.initializer
    edit = plan(model, history, request, initializer=chosen, freeze=freeze, round_to=round_to)
    return apply_(undo, model, history, edit, options, optimizer)


def apply_(
    undo: Undo,
    model: nn.Module,
    history: History,
    edit: Edit,
    options: GrowthOptions,
    optimizer: list[Optimizer],
) -> Edit:
    """Applies a planned edit to its model.

    All steps that can fail because of the request or of too little memory come before the first
    change; with `check` it fails if the model then computes a different function.
    """
    before = before_edit(model, history, check=options.check)
    prepared = carry_out_(undo, model, history, edit, options, optimizer)
    return held_to(before, prepared, history, options.initializer)


def held_to(
    before: Unchanged | None, prepared: PreparedEdit, history: History, initializer: Initializer
) -> Edit:
    """Makes sure that an applied edit has changed no output; returns its record.

    If its initializer is not exact, the added blocks are silent for the comparison, and the record
    says how far the outputs have moved.

    Raises:
        InexactError: If it has changed one, or made it infinite.
    """
    if before is None:
        return prepared.edit
    if initializer.exact:
        before.check(prepared.model, history)
        return prepared.edit
    _check_quiet(before, prepared, history)
    moved = before.moved(prepared.model, history)
    if not math.isfinite(moved):
        raise InexactError(
            f"initializer {initializer.name!r} would make outputs infinite or no numbers; it was "
            f"taken back"
        )
    edit = replace(prepared.edit, moved=moved)
    history.edits = [*history.edits[:-1], edit]
    return edit


@temporarily
def _check_quiet(undo: Undo, before: Unchanged, prepared: PreparedEdit, history: History) -> None:
    quiet_added_(prepared, undo)
    before.check(prepared.model, history)


def carry_out_(
    undo: Undo,
    model: nn.Module,
    history: History,
    edit: Edit,
    options: GrowthOptions,
    optimizer: list[Optimizer],
) -> PreparedEdit:
    """Applies a planned edit, as the first part of an operation that may still fail."""
    edit = replace(edit, initializer=options.initializer.name)
    prepared = replace(prepare(model, history.modules, edit, history.graph), loss=options.loss)
    _keep_fixed_(prepared, history)
    prepared = initialise_(options.initializer, prepared, undo)
    edit = replace(edit, loss=prepared.losses)
    layers = prepared.layers.values()
    groups = [group["params"] for each in optimizer for group in each.param_groups]
    trained = {key for params in groups for key in map(id, params)}
    added = new_block_parameters(layers) if optimizer else ()
    new = [p for p in added if not _is_left_out(p, trained)]
    joining = plan_joining(optimizer, new, edit.generation, options.rates)
    keep_(history, undo)
    if edit.closes is not None:
        close_generation_(model, history, undo)
    widen_(prepared, history.modules, undo)
    if prepared.former:
        former = {id(tensor) for tensor, _ in prepared.former}
        named = (*model.named_parameters(), *model.named_buffers())
        edit = replace(edit, rewritten=tuple(name for name, t in named if id(t) in former))
    note_grown_tensors_(history, edit)
    join_(joining, undo)
    history.graph = prepared.graph
    history.modules = structure(model)
    history.generation = edit.generation
    history.edits = [*history.edits, edit]
    return replace(prepared, edit=edit)


def _keep_fixed_(prepared: PreparedEdit, history: History) -> None:
    """Fixes the new parts of tensors that the user has fixed, such as a table of positions."""
    frozen = {id(parameter) for parameter in parameters_in(history.frozen_parameters())}
    for item in prepared.layers.values():
        for parameter in item.original.parameters() if item.change.use is not None else ():
            if not parameter.requires_grad and id(parameter) not in frozen:
                for block in item.added.values():
                    block.requires_grad_(False)


def new_block_parameters(prepared: Iterable[PreparedLayer]) -> Iterator[NewParameter]:
    """The parameters of added blocks, each with those whose param group it joins."""
    seen: set[nn.Parameter] = set()
    for item in prepared:
        for index, block in enumerate(item.added.values(), len(item.existing)):
            for name, parameter in block.named_parameters():
                if parameter in seen:  # of a layer that shares it
                    continue
                seen.add(parameter)
                known = (*_like(item.existing, name),)
                yield NewParameter(f"{item.change.path}.{index}.{name}", parameter, known)


def _like(blocks: Sequence[nn.Module], name: str) -> list[nn.Parameter]:
    """The parameters that blocks have of that name, or those that make theirs."""
    stores = [block._parameters for block in blocks]  # noqa: SLF001
    if all([name in store for store in stores]):  # noqa: C419 - faster
        return [p for p in [store[name] for store in stores] if p is not None]
    return [p for block in blocks for p in own_tensors(block, name)]


def _is_left_out(new: NewParameter, trained: Set[int]) -> bool:
    """Whether a parameter is fixed, and is a part of one that no optimizer has."""
    return not new.parameter.requires_grad and trained.isdisjoint(map(id, new.older))


def close_generation_(model: nn.Module, history: History, undo: Undo) -> None:
    """Closes the open generation: freezes it, and saves all other state that forward may change."""
    shares = [(m, m.alpha) for m in model.modules() if isinstance(m, FadeIn)]
    history.shares = {**history.shares, history.generation: shares}
    history.frozen = {**history.frozen, history.generation: freeze_(model, undo)}
    before = history.states.get(history.generation - 1, ())
    history.states = {**history.states, history.generation: take_state(model, before)}


def next_generation_(undo: Undo, model: nn.Module, history: History) -> int:
    """Closes the open generation and opens the next; returns its number."""
    keep_(history, undo)
    close_generation_(model, history, undo)
    history.generation += 1
    return history.generation


def unfreeze_all_(undo: Undo, model: nn.Module, history: History) -> None:
    """Unfreezes all that closing generations froze."""
    keep_(history, undo)
    unfreeze_(model, history.frozen_parameters(), undo)
    history.frozen, history.states = {}, {}
    history.exact_from = history.generation


def parameters_of(model: nn.Module, history: History, generation: int) -> list[nn.Parameter]:
    """The parameters that were born in a generation, in the model's order."""
    check_structure(model, history)
    born = edits_of_tensors(model, history.edits)
    later = {key: history.edits[edit - 1].generation for key, edit in born.items()}
    return [p for p in model.parameters() if later.get(id(p), 0) == generation]


def added_by(model: nn.Module, history: History, edit: Edit | int) -> list[nn.Parameter]:
    """The parameters that an edit added, in the model's order.

    Raises:
        TypeError: If `edit` is neither an edit nor a number.
        ValueError: If the model has no such edit, or its parameters are parts of plain layers now.
    """
    check_structure(model, history)
    if isinstance(edit, bool) or not isinstance(edit, (Edit, int)):
        raise TypeError(f"edit must be an Edit or its number, got {edit!r}")
    number = edit.index if isinstance(edit, Edit) else edit
    known = history.edits[number - 1] if 1 <= number <= len(history.edits) else None
    if known is None or (isinstance(edit, Edit) and edit != known):
        raise ValueError(f"this model has no such edit {number}; it has {len(history.edits)}")
    born = edits_of_tensors(model, history.edits)
    found = [p for p in model.parameters() if born.get(id(p)) == number]
    since = [later.index for later in history.edits[number:] if later.absorbed]
    if not found and since:
        raise ValueError(
            f"what edit {number} added is a part of plain layers since edit {since[-1]} "
            f"(`absorb`), which has their parameters"
        )
    return found


def param_groups_of(
    model: nn.Module, history: History, options: Mapping[int, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A param group for each generation up to the open one, and each one that has options.

    Raises:
        TypeError: If the options are of another type.
    """
    if not isinstance(options, Mapping) or not all(
        type(generation) is int and generation >= 0 and isinstance(own, Mapping)
        for generation, own in options.items()
    ):
        raise TypeError(f"options map generations to the options of their groups, got {options!r}")
    return [
        {
            "params": parameters_of(model, history, generation),
            "name": group_name(generation),
            **options.get(generation, {}),
        }
        for generation in range(max([history.generation, *options]) + 1)
    ]
