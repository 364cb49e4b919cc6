"""Rebuilding a model from its journal: the same blocks, without values.

A journal may come from anywhere, so every edit is checked against the model before it is applied,
and its blocks lie on the meta device, where they take no memory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.errors import CheckpointError
from splitgrow.growth.absorption import absorb_again_
from splitgrow.growth.consolidation import consolidated, put_joined_
from splitgrow.growth.edit_parts import JoinedBlocks, LayerChange, NumberChange
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import History, structure
from splitgrow.growth.input_channels import widened
from splitgrow.growth.insertion.insertion import tell_wrappers_
from splitgrow.growth.insertion.replay import insert_again_
from splitgrow.growth.journal.holding import states_of
from splitgrow.growth.journal.journal import Journal
from splitgrow.growth.journal.materialize import Devices, devices_of
from splitgrow.growth.journal.size_guard import TIMES, Bounded, Unbounded
from splitgrow.growth.module_numbers import change_, held_number
from splitgrow.growth.placing import place_
from splitgrow.growth.planned_blocks import planned_blocks
from splitgrow.growth.prepared import prepare_layer
from splitgrow.growth.recorded_layers import recorded_layer
from splitgrow.growth.removing.replay import lasting, remove_layers_again_
from splitgrow.growth.shrinking.replay import remove_again_
from splitgrow.growth.value_trials import analyse_again
from splitgrow.layers.fade import FadeIn
from splitgrow.layers.freezing import held, hold_statistics, release_
from splitgrow.layers.insertion_wrapper import note_questions_
from splitgrow.layers.split_layer import SplitLayer, stock
from splitgrow.layers.ties import tie_blocks_
from splitgrow.layers.types import Join
from splitgrow.layers.weight_views import keep_storage_
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.module_slots import holders_in
from splitgrow.utils.rollback import Undo, temporarily

LARGEST_WIDTH = 2**40
"""More units than any layer has; larger numbers are refused at once."""


def rebuild_(
    model: nn.Module,
    edits: Sequence[Edit],
    given: Mapping[str, nn.Module],
    undo: Undo,
    *,
    trusted: bool = False,
) -> Devices:
    """Applies edits to a model without planning them; the added blocks have no values yet.

    Nor have layers that become plain with such blocks.

    Args:
        model: A model with all edits before these.
        edits: The edits.
        given: Modules that the user passes again, by the paths of their insertions.
        undo: Takes it back.
        trusted: Whether the edits are a model's own. Layers that become plain then have values,
            with zeros for blocks that have none yet.

    Returns:
        The devices of the modules that had values before, if some of them become plain.

    Raises:
        CheckpointError: If an edit does not fit the model.
        MemoryError: If there is too little memory, which says nothing of the file.
    """
    places = devices_of(model) if any(edit.absorbed for edit in edits) else {}
    for edit in lasting(edits, given):
        try:
            _carry_out_(model, edit, given, undo, trusted=trusted)
        except CheckpointError as error:
            raise CheckpointError(f"edit {edit.index}: {error}") from error
        except MemoryError:
            raise
        except Exception as error:
            raise CheckpointError(f"edit {edit.index} cannot be carried out: {error}") from error
    return places


def _carry_out_(
    model: nn.Module, edit: Edit, given: Mapping[str, nn.Module], undo: Undo, *, trusted: bool
) -> None:
    modules = structure(model)
    for change in edit.changes:
        _check_change(modules, change)
    # A tensor that has not grown yet is no module, and has one name.
    changed = [modules.get(change.path, change.name) for change in edit.changes]
    if len({*changed}) < len(changed):
        raise CheckpointError("it changes a layer twice")
    prepared = [prepare_layer(modules, edit.index, each, "meta") for each in edit.changes]
    tie_blocks_({item.name: item.composition for item in prepared})
    holders = holders_in(model) if prepared else {}
    for item in prepared:
        place_(modules, item, holders, undo)
    if edit.removed:
        remove_again_(modules, edit.removed, undo)
    for number in edit.numbers:
        _check_number(modules, number, falls=bool(edit.removed))
        change_(modules[number.module], number.attribute, number.value[1], undo)
    for joined in edit.joined:
        split, births = _joined_layer(modules, joined)
        put_joined_(consolidated(joined.name, split, births, edit.index), undo)
    for insertion in edit.inserted:
        insert_again_(model, edit.index, insertion, given, undo)
    remove_layers_again_(model, edit.removed_layers, undo)
    if edit.absorbed:
        absorb_again_(model, edit.absorbed, undo, trusted=trusted)


def _check_change(modules: Mapping[str, nn.Module], change: LayerChange) -> None:
    """Makes sure that a layer can make a change.

    Raises:
        CheckpointError: If it cannot.
    """
    module, entry = recorded_layer(modules, change)
    layer = stock(module)
    sizes = module.sizes() if isinstance(module, SplitLayer) else entry.sizes(layer)
    if sizes != (change.in_width[0], change.width[0]):
        raise CheckpointError(
            f"`{change.name}` has {change.in_width[0]} inputs and {change.width[0]} units there, "
            f"in this model {sizes[0]} and {sizes[1]}"
        )
    gains = []
    for (before, after), insertions in (
        (change.in_width, change.ins),
        (change.width, change.outs),
    ):
        places = [place for place, _ in insertions]
        gained = sum(count for _, count in insertions)
        ordered = all(one <= other for one, other in pairwise([0, *places, before]))
        positive = all(count > 0 for _, count in insertions)
        if not (ordered and positive and before + gained == after <= LARGEST_WIDTH):
            raise CheckpointError(f"the widths of `{change.name}` contradict each other")
        gains.append(gained)
    joins = [*Join] if entry.starts(layer) else [Join.APART]
    if change.join not in [join.value for join in joins]:
        raise CheckpointError(f"`{change.name}` takes no channels that join by {change.join!r:.20}")
    blocks = tuple(planned_blocks(entry, layer, (sizes[0], sizes[1]), (gains[0], gains[1])))
    if not any(gains) or change.blocks not in (blocks, blocks[::-1]):
        raise CheckpointError(f"the blocks of `{change.name}` are not those of its widths")


def _joined_layer(
    modules: Mapping[str, nn.Module], joined: JoinedBlocks
) -> tuple[SplitLayer, tuple[int, ...]]:
    """A layer with blocks to join, and the edits that added these: its last ones.

    Raises:
        CheckpointError: If there is no such layer, or it has no such blocks.
    """
    split, births = modules.get(joined.name), tuple(sorted({*joined.edits}))
    known = (
        isinstance(split, SplitLayer)
        and split.layer_type.merging.side_by_side
        and births[:1] > (0,)
    )
    if isinstance(split, SplitLayer) and known:
        last = {block.edit for block in split.blocks if block.edit >= births[0]}
        if {*births} == last:
            return split, births
    raise CheckpointError(f"it joins blocks of `{joined.name}` that this does not have")


def _check_number(
    modules: Mapping[str, nn.Module], number: NumberChange, *, falls: bool = False
) -> None:
    """Makes sure that a module holds the number to change.

    Raises:
        CheckpointError: If it does not.
    """
    module = modules.get(number.module)
    found = held_number(module, number.attribute) if module is not None else None
    before, after = number.value
    counts = type(found) is int and type(after) is int and before < after <= LARGEST_WIDTH
    if falls:
        counts = type(found) is int and type(after) is int and 0 < after < before
    scales = type(found) is float and type(after) is float and 0 < after < before < math.inf
    if found != before or not (counts or scales):
        name = f"{number.module}.{number.attribute}".removeprefix(".")
        raise CheckpointError(f"`{name}` is {number.value[0]} there, in this model {found!r}")


def restore_(
    model: nn.Module,
    history: History,
    journal: Journal,
    start: int,
    undo: Undo,
    tensors: Mapping[str, Any] | None = None,
) -> None:
    """Restores a model's history, once its modules and tensors are there.

    Args:
        model: The model.
        history: Its history, with example inputs for the model as it is now.
        journal: The journal to restore.
        start: The number of edits that were applied before.
        undo: Takes it back. The caller keeps the history itself.
        tensors: Tensors that will be loaded into the model, by name.

    Raises:
        CheckpointError: If the journal names an item that is not there, or the model cannot be
            analysed.
    """
    modules, named = structure(model), dict(model.named_parameters(remove_duplicate=False))
    unknown = {name for names in journal.frozen.values() for name in names} | {*journal.fixed}
    unknown -= named.keys()
    unknown |= {*journal.held} - modules.keys()
    fades = {share.path for shares in journal.shares.values() for share in shares}
    unknown |= {path for path in fades if not isinstance(modules.get(path), FadeIn)}
    if unknown:
        raise CheckpointError(f"the model has no {', '.join(sorted(unknown)[:3])}")
    fixed = {id(named[name]) for name in journal.fixed}
    for name, parameter in named.items():
        _set_training_(name, parameter, undo, trains=id(parameter) not in fixed)
    still = {id(modules[path]) for path in journal.held}
    for module in model.modules():
        _hold_(module, undo, held_now=id(module) in still)
    history.frozen = {
        generation: [(modules[_parent(name)], name.rpartition(".")[2]) for name in names]
        for generation, names in journal.frozen.items()
    }
    history.shares = {
        generation: [(_fade(modules[share.path]), share.alpha) for share in shares]
        for generation, shares in journal.shares.items()
    }
    history.states = states_of(model, journal, tensors or {})
    history.edits = [*journal.edits]
    history.generation, history.exact_from = journal.generation, journal.exact_from
    history.broken = {**journal.broken, **history.broken}
    history.modules = structure(model)
    if start < len(journal.edits) or not history.graph.nodes:
        history.graph = analysed_(model, history, undo)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _fade(module: nn.Module) -> FadeIn:
    assert isinstance(module, FadeIn)
    return module


def _set_training_(name: str, parameter: nn.Parameter, undo: Undo, *, trains: bool) -> None:
    if parameter.requires_grad == trains:
        return
    if trains and not (parameter.is_floating_point() or parameter.is_complex()):
        raise CheckpointError(f"`{name}` holds {parameter.dtype}, which cannot train")
    undo.on_failure(partial(parameter.requires_grad_, not trains))
    parameter.requires_grad_(trains)


def _hold_(module: nn.Module, undo: Undo, *, held_now: bool) -> None:
    """Holds a module's statistics, or lets them change."""
    before = held(module)
    if before == held_now:
        return
    undo.keep(vars(module), module._forward_pre_hooks)  # noqa: SLF001
    if held_now:
        module.register_forward_pre_hook(hold_statistics)
    else:
        release_(module)


def widen_inputs_(model: nn.Module, history: History, edits: Sequence[Edit]) -> None:
    """Widens the example inputs to fit the model after replayed edits.

    Raises:
        CheckpointError: If they have no such input.
        MemoryError: If there is too little memory, which says nothing of the file.
    """
    for edit in edits:
        if edit.inputs:
            read = sum(change.in_width[1] - change.in_width[0] for change in edit.changes)
            more = max(change.width[1] - change.width[0] for change in edit.inputs)
            if more > TIMES * read:
                raise CheckpointError(f"edit {edit.index} widens an input by what nothing reads")
            try:
                inputs = widened(model, history.inputs, edit.inputs)
            except MemoryError:
                raise
            except Exception as error:
                raise CheckpointError(f"edit {edit.index} widens no input: {error}") from error
            history.narrower = (*history.narrower, (edit.index, history.inputs))
            history.inputs = inputs


def _elements(model: nn.Module, inputs: ExampleCall) -> int:
    held = (*model.parameters(), *model.buffers(), *pytree.tree_leaves(inputs))
    return sum(tensor.numel() for tensor in held if isinstance(tensor, Tensor))


@temporarily
def _analysed_within_bounds(
    undo: Undo, model: nn.Module, history: History
) -> tuple[ChannelGraph, set[int]]:
    """The graph, and the ids of wrappers that answer for attributes of their modules."""
    asked = note_questions_(undo)
    inputs = history.inputs
    with Bounded(_elements(model, inputs)):
        return analyse_again(model, inputs, history.broken, history.graph), asked


def analysed_(model: nn.Module, history: History, undo: Undo) -> ChannelGraph:
    """The channel graph of a rebuilt model.

    Raises:
        CheckpointError: If it does not run.
        MemoryError: If there is too little memory, which says nothing of the file.
    """
    keep_storage_(model.parameters(), undo)
    try:
        graph, asked = _analysed_within_bounds(model, history)
    except MemoryError:
        raise
    except (Exception, Unbounded) as error:
        raise CheckpointError(
            f"the model does not run as the journal puts it together: {error}"
        ) from error
    tell_wrappers_(model, asked, undo)
    return graph
