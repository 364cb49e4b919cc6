"""The journal in a model's state_dict: written with it, and replayed when it is loaded."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.errors import CheckpointError, SplitGrowWarning
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import History, keep_
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.journal.guards import without_guards_
from splitgrow.growth.journal.holding import later_states, states_of
from splitgrow.growth.journal.journal import Journal
from splitgrow.growth.journal.materialize import materialise_
from splitgrow.growth.journal.replay import rebuild_, restore_, widen_inputs_
from splitgrow.growth.journal.taking import journal_of
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import plain_name
from splitgrow.utils.rollback import Undo
from splitgrow.utils.source_lines import levels_to_caller
from splitgrow.utils.wrappers import refuse_wrapped

KEY = "_extra_state"
"""Torch's key for a module's extra state in its state_dict."""
_OURS, _THEIRS = "splitgrow", "extra_state"


def put_journal(model: nn.Module, state: MutableMapping[str, Any], prefix: str) -> None:
    """Adds the journal to a state_dict, if the model has grown or closed a generation.

    It is the JSON's bytes as a uint8 tensor, so that any code that takes tensors takes it. The
    model's own extra state lies beside it, in a dictionary.
    """
    history = history_of(model)
    if not history.edits and not history.generation:
        return
    text = _journal_for(model, history).to_json().encode()
    journal = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    key = prefix + KEY
    state[key] = {_OURS: journal, _THEIRS: state[key]} if key in state else journal


def _journal_for(model: nn.Module, history: History) -> Journal:
    """The model's journal; of a copy that follows another model, that one's.

    Some averages pair the values of the two state_dicts, which must then have the same shapes.
    """
    leader = history.kin.leader() if history.kin.leader is not None else None
    if leader is not None and history_of(leader).edits == history.edits:
        return journal_of(leader, history_of(leader))
    return journal_of(model, history)


def take_journal(model: nn.Module, state: MutableMapping[str, Any], prefix: str) -> Journal | None:
    """Removes the journal from a state_dict and returns it; None if there is none.

    Args:
        model: The model.
        state: The state_dict. The model's own extra state stays in it.
        prefix: The prefix of the model's keys.

    Raises:
        CheckpointError: If the entry is not a journal.
    """
    without_guards_(state, prefix)
    key = prefix + KEY
    held = state.get(key)
    if isinstance(held, Mapping) and held.keys() == {_OURS, _THEIRS}:
        state[key], held = held[_THEIRS], held[_OURS]
    elif held is not None and not has_extra_state(model):
        del state[key]
    else:
        return None
    if not isinstance(held, Tensor) or held.dtype != torch.uint8 or held.dim() != 1:
        raise CheckpointError(f"`{key}` of the state_dict is no journal of a growable model")
    try:
        return Journal.from_json(bytes(held.tolist()).decode())
    except UnicodeDecodeError as error:
        raise CheckpointError(f"the journal cannot be read: {error}") from error


def has_extra_state(model: nn.Module) -> bool:
    """Whether a module adds its own extra state to its state_dict."""
    return type(model).get_extra_state is not nn.Module.get_extra_state


def follow_(
    model: nn.Module,
    journal: Journal | None,
    state: MutableMapping[str, Any],
    prefix: str,
    undo: Undo,
    given: Mapping[str, nn.Module] | None = None,
    *,
    trusted: bool = False,
) -> None:
    """Makes a model's structure that of a journal, ready for the tensors of a state_dict.

    If the model has more edits than the journal, it stays as it is, and the state_dict is
    completed.

    Args:
        model: A growable model.
        journal: The journal; None for tensors alone, which say nothing of a history.
        state: The state_dict.
        prefix: The prefix of the model's keys.
        undo: Takes it back.
        given: Modules that the user passes again, by the paths of their insertions.
        trusted: As in `rebuild_`.

    Raises:
        CheckpointError: If neither list of edits, the model's or the journal's, is the beginning of
            the other, or the journal or the tensors do not fit the model.
        UnsupportedModelError: If a wrapper for several processes would miss the change.
    """
    history = history_of(model)
    history.refuse_while_viewing("load a state_dict")
    if journal is None and not history.edits:
        return
    present = journal is None and fits(model, _own_of(state, prefix))
    journal = journal or Journal()
    start = common_edits(history.edits, journal.edits)
    keep_(history, undo)
    if start < len(history.edits):
        before = len(state)
        if not present:
            complete(model, state, prefix, start)
        if len(state) > before:
            _warn_of_earlier(model, history, start, journal.generation)
        tensors = _own_of(state, prefix)
        states = later_states(model, history.states, journal.generation, tensors)
        history.states = {**states, **states_of(model, journal, tensors)}
        return
    tensors = _own_of(state, prefix)
    own = replace(journal_of(model, history), states=journal.states, broken=journal.broken)
    if replace(own, fixed=journal.fixed, held=journal.held) == journal:
        # Parameters that the user has frozen since stay frozen.
        history.states = states_of(model, journal, tensors)
        return
    refuse_wrapped(model, "grow to what a state_dict needs", mirrored=False)
    places = rebuild_(model, journal.edits[start:], given or {}, undo, trusted=trusted)
    materialise_(model, tensors, undo, places)
    widen_inputs_(model, history, journal.edits[start:])
    restore_(model, history, journal, start, undo, tensors)


def _warn_of_earlier(model: nn.Module, history: History, edits: int, generation: int) -> None:
    """Says that a state_dict from before some edits does not take them back."""
    shown = history.exact_from <= generation < history.generation
    if shown and history.last_edit(generation) == edits:
        way = (
            f"`with model.at({generation}):` shows the network that was saved, and "
            f"splitgrow.merge(model, {generation}) goes back to it"
        )
    else:
        way = "load it into a fresh model, once that is growable, to go back to what was saved"
    warnings.warn(
        f"the state_dict is from before {len(history.edits) - edits} of the {len(history.edits)} "
        f"edits of this {type(model).__name__}: what these have added keeps its values, so the "
        f"model is not the one that was saved; {way}",
        SplitGrowWarning,
        stacklevel=levels_to_caller(),
    )


def _own_of(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name[len(prefix) :]: t for name, t in state.items() if name.startswith(prefix)}


def common_edits(own: list[Edit], other: tuple[Edit, ...]) -> int:
    """The number of edits that a model and a journal share, where one of them has no others.

    Raises:
        CheckpointError: If they differ before one of them ends.
    """
    for one, another in zip(own, other, strict=False):
        if _done(one) != _done(another):
            raise CheckpointError(
                f"edit {one.index} of this model is not that of the checkpoint:\n  {one}\n"
                f"  {another}\nstart with a fresh model"
            )
    return min(len(own), len(other))


def _done(edit: Edit) -> tuple[Any, ...]:
    """The changes of an edit, without its request."""
    inserted = tuple((i.name, i.kind, i.before, i.recipe) for i in edit.inserted)
    return (
        edit.changes,
        edit.numbers,
        edit.joined,
        inserted,
        edit.inputs,
        edit.absorbed,
        edit.removed,
        edit.removed_layers,
    )


def complete(model: nn.Module, state: MutableMapping[str, Any], prefix: str, edits: int) -> None:
    """Completes a state_dict from an earlier time: later tensors keep their present values.

    Args:
        model: A growable model.
        state: The state_dict.
        prefix: The prefix of the model's keys.
        edits: The number of edits at that time.

    Raises:
        CheckpointError: If blocks of that time were joined with others since.
    """
    history = history_of(model)
    _refuse_joined(history, edits)
    for path, module in model.named_modules(remove_duplicate=False):
        start = f"{prefix}{path}." if path else prefix
        if isinstance(module, SplitLayer):
            _complete_layer(module, state, start, edits)
        elif isinstance(module, InsertionWrapper):
            for item in module.inserted:
                if item.edit > edits:
                    _add_own(state, module.part(item.name), f"{start}{item.name}.")


def _complete_layer(
    split: SplitLayer, state: MutableMapping[str, Any], start: str, edits: int
) -> None:
    born = [block.edit for block in split.blocks]
    if not any(0 < edit <= edits for edit in born):  # it was a stock layer then
        for key in split.original.state_dict():
            before = plain_name(split, start.removesuffix("."), key)
            if before in state:
                state[f"{start}0.{key}"] = state.pop(before)
    for index, (block, edit) in enumerate(zip(split, born, strict=True)):
        if edit > edits:
            _add_own(state, block, f"{start}{index}.")


def _refuse_joined(history: History, edits: int) -> None:
    for edit in history.edits[edits:]:
        if edit.absorbed:
            raise CheckpointError(
                f"the state_dict is from before edit {edit.index}, which made "
                f"`{edit.absorbed[0]}` plain: load it into a fresh model"
            )
        if edit.removed:
            raise CheckpointError(
                f"the state_dict is from before edit {edit.index}, which took units of "
                f"`{edit.removed[0].name}` out: load it into a fresh model"
            )
        if edit.removed_layers:
            raise CheckpointError(
                f"the state_dict is from before edit {edit.index}, which took "
                f"`{edit.removed_layers[0].name}` out: load it into a fresh model"
            )
        for joined in edit.joined:
            if any(born <= edits for born in joined.edits):
                raise CheckpointError(
                    f"the state_dict is from before edit {edit.index}, which joined blocks of "
                    f"`{joined.name}` that it has apart"
                )


def _add_own(state: MutableMapping[str, Any], module: nn.Module, prefix: str) -> None:
    for key, value in module.state_dict(prefix=prefix, keep_vars=True).items():
        state.setdefault(key, value)


def check_fit(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Makes sure that a state_dict has the tensors of a model, with its shapes, and no others.

    Raises:
        CheckpointError: If it has not; the first difference is named.
    """
    _compare(model.state_dict(keep_vars=True), state)


def _compare(own: MutableMapping[str, Any], state: Mapping[str, Any]) -> None:
    own.pop(KEY, None)
    for name in [*own, *(name for name in state if name not in own)]:
        if name == KEY:
            continue
        shapes = [_shape(held.get(name)) for held in (state, own)]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"`{name}` is {shapes[0]} in the state_dict, {shapes[1]} in this model"
            )


def fits(model: nn.Module, state: Mapping[str, Any]) -> bool:
    """Whether a state_dict has the tensors of a model as it is now."""
    try:  # not by the model's own method, which gives every block storage of its own
        _compare(nn.Module.state_dict(model, keep_vars=True), state)
    except CheckpointError:
        return False
    return True


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return str(tuple(value.shape))
    return "missing" if value is None else "no tensor"
