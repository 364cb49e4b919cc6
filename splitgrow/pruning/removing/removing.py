"""Taking a layer out of a model: the edit is planned, then applied, all or nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import nn
from torch.optim import Optimizer

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.analysis.output_comparison import (
    NotRunnableError,
    compared,
    fitting,
    leading,
    places_of,
)
from splitgrow.analysis.output_comparison import outputs_of as outputs_in_evaluation
from splitgrow.analysis.unsupported_layers import stray_references
from splitgrow.errors import InexactError, TraceError, UnsupportedLayerError
from splitgrow.growth.edit_check import Unchanged, before_edit
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import History, check_structure, keep_, structure
from splitgrow.growth.insertion.insertion import tell_wrappers_
from splitgrow.growth.optimizers import leave_
from splitgrow.growth.removing.record import LayerRemoval
from splitgrow.growth.removing.taking_off import inserted_at, put_identity_, take_off_
from splitgrow.growth.value_trials import analyse_again
from splitgrow.layers.insertion_wrapper import note_questions_
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.pruning.giving_up import born_at, let_go_, lost_generations, refuse_loss
from splitgrow.pruning.removing.idle_modules import refuse_busy
from splitgrow.utils.closest_names import did_you_mean
from splitgrow.utils.rollback import Undo, temporarily


def remove_layer_(
    undo: Undo,
    model: nn.Module,
    history: History,
    name: str,
    *,
    give_up: bool,
    optimizer: list[Optimizer],
    check: bool,
) -> Edit:
    """Takes out what was inserted, or a module that adds nothing."""
    check_structure(model, history)
    removal = _removal(model, history, name)
    lost = lost_generations(history, removal.edit or born_at(history, name))
    refuse_loss(lost, f"`{name}`", ", or take out newer layers", give_up=give_up)
    before = before_edit(model, history, check=check)
    keep_(history, undo)
    there = {id(parameter): parameter for parameter in model.parameters()}
    ran: list[bool] = []
    if removal.edit:
        found = inserted_at(model, name)
        assert found is not None
        take_off_(model, *found, undo)
        ran.append(True)
    else:
        identity = put_identity_(model, history.modules[name], undo)
        handle = identity.register_forward_hook(lambda *_: ran.append(True))
        undo.on_failure(handle.remove)
    here = {id(parameter) for parameter in model.parameters()}
    gone = [parameter for key, parameter in there.items() if key not in here]
    leave_(optimizer, gone, undo)
    removal = replace(removal, parameters=sum(parameter.numel() for parameter in gone))
    edit = Edit(
        len(history.edits) + 1,
        history.generation,
        None,
        {},
        {},
        (),
        removed_layers=(removal,),
        gives_up=lost,
    )
    history.graph, asked = _analysed(model, history, name)
    tell_wrappers_(model, asked, undo)
    history.modules = structure(model)
    history.edits = [*history.edits, edit]
    let_go_(model, history, edit)
    if before is not None:
        edit = _measured(edit, model, history, before)
        history.edits = [*history.edits[:-1], edit]
    if not removal.edit:
        handle.remove()
        _refuse_unseen(name, ran=bool(ran) or before is None)
    return edit


def _removal(model: nn.Module, history: History, name: str) -> LayerRemoval:
    """The record of a layer that can go, without the number of its parameters.

    Raises:
        TypeError: If `name` is no text.
        ValueError: If there is no such module.
        UnsupportedLayerError: If it cannot go.
    """
    if not isinstance(name, str):
        raise TypeError(f"the layer that goes is named by its path, got {name!r}")
    if not name:
        raise UnsupportedLayerError("the model itself cannot be taken out of it")
    if name not in history.modules:
        raise ValueError(f"no module {name!r}; {_hint(history, name)}")
    inserted = inserted_at(model, name)
    if inserted is not None:
        edit = inserted[1].edit
        records = (i for e in history.edits if e.index == edit for i in e.inserted)
        record = next(item for item in records if item.name == name)
        if inserted[1].experts is not None:
            raise UnsupportedLayerError(
                f"`{name}` has experts, which rows of the router choose and from which later ones "
                f"count on; they stay. splitgrow.merge(model, generation) shows a generation "
                f"before them"
            )
        return LayerRemoval(name, record.kind, record.type, 0, edit)
    around = [name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)]
    grown = next((p for p in around if isinstance(history.modules.get(p), SplitLayer)), None)
    if grown is not None:
        raise UnsupportedLayerError(
            f"`{name}` is a block of the grown layer `{grown}`; `shrink` takes units out of that"
        )
    module = history.modules[name]
    if type(module) is nn.Identity:
        raise UnsupportedLayerError(f"`{name}` is an Identity, which has nothing to take out")
    for holder, attribute, _ in stray_references(history.modules, {id(module)}):
        raise UnsupportedLayerError(
            f"`{holder or 'the model'}` also holds `{name}` in a tuple or set in the attribute "
            f"`{attribute}`, where it would stay; use a list there"
        )
    refuse_busy(model, history, name, module)
    return LayerRemoval(name, "", _described(module), 0)


def _hint(history: History, name: str) -> str:
    taken = (e.index for e in history.edits for item in e.removed_layers if item.has(name))
    edit = next(taken, None)
    if edit is not None:
        return f"edit {edit} has taken it out"
    return did_you_mean(name, filter(None, history.modules), "see named_modules()")


def _described(module: nn.Module) -> str:
    return type(module.original if isinstance(module, SplitLayer) else module).__name__


@temporarily
def _analysed(
    undo: Undo, model: nn.Module, history: History, name: str
) -> tuple[ChannelGraph, set[int]]:
    """The graph without a layer, and the ids of wrappers that are asked for attributes.

    Raises:
        InexactError: If the model no longer runs.
    """
    asked = note_questions_(undo)
    try:
        return analyse_again(model, history.inputs, history.broken, history.graph), asked
    except (ValueError, TraceError) as error:
        raise InexactError(
            f"without `{name}` the model no longer runs; if the widths on its two sides have grown "
            f"apart, make them equal first, by `expand_layer` or `shrink_layer`: {error}"
        ) from error


def _measured(edit: Edit, model: nn.Module, history: History, before: Unchanged) -> Edit:
    """The edit, with how far it has moved the outputs if that is no rounding.

    Raises:
        InexactError: If the model no longer runs, or has lost more than a module that adds nothing.
    """
    inputs, touched = fitting(model, history.inputs), history.graph.touched
    run = partial(outputs_in_evaluation, model, inputs, touched=touched)
    try:
        now = run()
    except NotRunnableError as error:
        raise InexactError(f"the model no longer runs afterwards: {error}") from None
    # A model has fewer caches without a block.
    places = places_of(now, before.outputs)
    old = leading([before.outputs[n] for n in places if n < len(before.outputs)], now)
    found = compared(now, old, lambda: run(noisy=True))
    (removal,) = edit.removed_layers
    if not found.same and not removal.edit:
        raise InexactError(
            f"without `{removal.name}` the model would compute something else, by "
            f"{found.difference:.1e} of the largest output, where {found.tolerance:.0e} is "
            f"rounding; it was taken back"
        )
    return replace(edit, moved=None if found.same else found.difference)


def _refuse_unseen(name: str, *, ran: bool) -> None:
    if not ran:
        raise UnsupportedLayerError(
            f"forward reaches `{name}` otherwise than by that name (through a closure, a tuple or "
            f"another object that holds it), so that it would not go"
        )
