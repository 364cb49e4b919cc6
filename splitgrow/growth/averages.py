"""Growing an averaged copy of a model (EMA, SWA) as the model has grown, with its averages kept."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor, nn

from splitgrow.errors import CheckpointError, SplitGrowWarning
from splitgrow.growth.copies import modules_in
from splitgrow.growth.history import edits_of_tensors, structure
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.insertion.builders import inserted_by_user
from splitgrow.growth.journal import journal_of
from splitgrow.growth.journal.materialize import empty_slots_of, materialise_
from splitgrow.growth.journal.replay import rebuild_
from splitgrow.growth.journal.state_dict import common_edits, follow_
from splitgrow.layers.module_state import take_state
from splitgrow.layers.plain_copy import plain_copy
from splitgrow.utils.model_lock import change_alone
from splitgrow.utils.rollback import Undo, temporarily
from splitgrow.utils.source_lines import levels_to_caller

_MARK = 0.7390851


def follow_growth_(model: nn.Module, undo: Undo) -> None:
    """Has the averages that follow a model grow as it has.

    Args:
        model: The model.
        undo: Takes it back.

    Raises:
        SplitGrowError: If one cannot follow.
    """
    for copied, average in history_of(model).kin.following():
        catch_up_(copied, average, model, undo)


def warn_of_copies_behind(model: nn.Module) -> None:
    """Warns if a copy averages a model and has fewer edits than it."""
    for copied in history_of(model).kin.changed_copies():
        if len(history_of(copied).edits) < len(history_of(model).edits):
            warnings.warn(
                f"a deep copy of this {type(model).__name__} that averages it (EMA, SWA), or has "
                f"changed since it was made, has not grown along; averages pair parameters by "
                f"position, and would mix up its layers: call splitgrow.follow(average, model)",
                SplitGrowWarning,
                stacklevel=levels_to_caller(),
            )
            break


def catch_up_(copied: nn.Module, average: object, model: nn.Module, undo: Undo) -> None:
    """Repeats the edits of a model in a copy of it.

    Args:
        copied: The copy, which is growable.
        average: The module or other object that holds it, or the copy itself.
        model: The model.
        undo: Takes it back.

    Raises:
        CheckpointError: If the copy has grown by itself.
    """
    own, history = history_of(copied), history_of(model)
    since = common_edits(own.edits, tuple(history.edits))
    if since < len(own.edits):
        raise CheckpointError(
            f"the average has {len(own.edits)} edits, the model {len(history.edits)}: it has grown "
            f"by itself; make it anew"
        )
    if since == len(history.edits) and own.graph.nodes:
        return
    before, kept = dict(_named_tensors(copied)), _kept_in_joints(copied, model, since)
    trains = {id(tensor): tensor.requires_grad for tensor in before.values()}
    journal, state = journal_of(model, history), _by_every_name(model)
    given = _given_modules(model, since)
    states = own.states  # of its closed generations, which are averages as well
    closed = range(own.generation, history.generation)
    taken = take_state(copied, states.get(own.generation - 1, ())) if closed else []

    def repeat(part: Undo) -> None:
        follow_(copied, journal, state, "", part, given, trusted=True)
        kept = {**own.states, **states, **dict.fromkeys(closed, taken)}
        own.states = {g: each for g, each in kept.items() if g >= history.exact_from}

    with undo.gathers():
        change_alone(copied, own.model_lock, "follow the growth of its model", repeat)
    for tensor in dict(_named_tensors(copied)).values():
        _set_training_(tensor, undo, trains=trains.get(id(tensor), any(trains.values())))
    begin_averages_(copied, model, since, kept)
    _rename_(average, copied, before, undo)


def _set_training_(tensor: Tensor, undo: Undo, *, trains: bool) -> None:
    """An average's parameters train as they did, whatever the model has frozen since."""
    if tensor.requires_grad != trains and isinstance(tensor, nn.Parameter):
        undo.on_failure(partial(tensor.requires_grad_, tensor.requires_grad))
        tensor.requires_grad_(trains)


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _by_every_name(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, _, tensor in empty_slots_of(module)}


@torch.no_grad()
def begin_averages_(
    copied: nn.Module,
    model: nn.Module,
    since: int,
    kept: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Gives the tensors of a copy that later edits have added or changed the model's values.

    Args:
        copied: The copy.
        model: The model.
        since: The number of the last edit before them.
        kept: The places of tensors that later edits have joined of earlier ones, by name.
    """
    values, born = dict(_named_tensors(model)), _born(copied)
    rewritten = {name for edit in history_of(model).edits[since:] for name in edit.rewritten}
    for name, tensor in _named_tensors(copied):
        if born.get(id(tensor), 0) > since or name in rewritten:
            value = values[name].to(tensor.device, tensor.dtype)
            tensor.copy_(torch.where(kept[name], tensor, value) if name in kept else value)


def _born(copied: nn.Module) -> dict[int, int]:
    return edits_of_tensors(copied, history_of(copied).edits)


def _kept_in_joints(copied: nn.Module, model: nn.Module, since: int) -> dict[str, Tensor]:
    """Where the tensors of a copy will have values of today, if later edits join tensors.

    A joint holds averages, and maybe values of edits that the copy has yet to repeat. A copy full
    of one number shows which: what is added has zeros. The number is none that the factors of a
    norm could turn into zero.
    """
    edits = history_of(model).edits[since:]
    if not any(edit.joined or edit.absorbed for edit in edits):
        return {}

    def repeat(undo: Undo) -> dict[str, Tensor]:
        marks = copy.deepcopy(copied)
        with torch.no_grad():
            for tensor in dict(_named_tensors(marks)).values():
                tensor.fill_(_MARK if tensor.is_floating_point() or tensor.is_complex() else 1)
        rebuild_(marks, edits, _given_modules(model, since), undo, trusted=True)
        materialise_(marks, _by_every_name(model), undo)
        return {name: tensor.detach() != 0 for name, tensor in _named_tensors(marks)}

    return temporarily(repeat)()


def _given_modules(model: nn.Module, since: int) -> dict[str, nn.Module]:
    """The modules of the user that edits have inserted, as they were then, by path."""
    modules = structure(model)
    return {
        insertion.name: inserted_by_user(
            plain_copy(modules[insertion.name], edit.index, {}), insertion.kind
        )
        for edit in history_of(model).edits[since:]
        for insertion in edit.inserted
        if "given" in insertion.recipe and insertion.name in modules  # it may be gone again
    }


def _rename_(average: object, copied: nn.Module, before: Mapping[str, Tensor], undo: Undo) -> None:
    """Gives an average that lists parameters or buffers by name their present names."""
    path = next((path for path, module in modules_in(average) if module is copied), "")
    parts = path.split(".") if path else []
    for key, names in list(vars(average).items()):
        if type(names) not in {set, list} or not names:
            continue
        for start in range(len(parts) + 1):  # names begin at the copy, or at a module around it
            within = "".join(f"{part}." for part in parts[start:])
            known = {within + name: tensor for name, tensor in before.items()}
            if known.keys() >= set(names):
                undo.on_failure(partial(setattr, average, key, names))
                now = {within + name: tensor for name, tensor in _named_tensors(copied)}
                setattr(average, key, type(names)(_renamed(names, known, now)))
                break


def _renamed(
    names: Collection[str], known: Mapping[str, Tensor], now: Mapping[str, Tensor]
) -> list[str]:
    """Present names for former ones, and the new ones where all of a kind were listed."""
    paths = {id(tensor): name for name, tensor in now.items()}
    found = [paths[id(known[name])] for name in names if id(known[name]) in paths]
    old = {id(tensor) for tensor in known.values()}
    for kind in (True, False):  # parameters, and buffers
        all_names = {name for name, t in known.items() if _averaged(t, parameter=kind)}
        if all_names and all_names <= set(names):
            new = (name for name, t in now.items() if _averaged(t, parameter=kind))
            found.extend(name for name in new if id(now[name]) not in old)
    return found


def _averaged(tensor: Tensor, *, parameter: bool) -> bool:
    """Whether a tensor is a parameter, or a buffer, that an average can be made of."""
    floats = tensor.is_floating_point() or tensor.is_complex()
    return floats and isinstance(tensor, nn.Parameter) == parameter
