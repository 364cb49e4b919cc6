"""Growing a model: its history, and the carrying out of a planned edit, all or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn

from splitgrow.attributes import change_
from splitgrow.deepened import Deepened
from splitgrow.edits import Edit, LayerChange
from splitgrow.fading import FadeIn
from splitgrow.generations import freeze_, held, unfreeze_
from splitgrow.history import History, check_structure, keep_, structure
from splitgrow.initializers import Initializer, initializer_of, silent_channels
from splitgrow.layouts import Layout
from splitgrow.optimizers import NewParameter, group_name, join_, listed, plan_joining
from splitgrow.planning import (
    build_block,
    check_request,
    make_plan,
    planned_blocks,
    rounded_up,
)
from splitgrow.split import Block, SplitLayer
from splitgrow.undisturbed import keep_surroundings_
from splitgrow.undo import Undo


def plan(
    model: nn.Module,
    history: History,
    request: Mapping[int | str, int],
    *,
    freeze: bool,
    round_to: int = 1,
) -> Edit:
    """The edit that a request leads to, not applied."""
    check_structure(model, history)
    opened = history.next_edit(freeze=freeze)
    checked = check_request(history.graph, request)
    checked = rounded_up(history.graph, checked, round_to)
    return make_plan(history.graph, history.modules, checked, history.edits, opened)


@dataclass(frozen=True)
class _Prepared:
    """A layer's change with everything that it needs, made but not yet put in place."""

    change: LayerChange
    split: SplitLayer
    modules: list[nn.Module]
    blocks: list[Block]
    ins: Layout
    outs: Layout


def apply_(
    model: nn.Module, history: History, edit: Edit, *, initializer: str, optimizer: object
) -> Edit:
    """Carries out a planned edit on its model.

    Everything that can fail on account of the request or for want of memory is done before the
    first change; what then follows is taken back if it is interrupted.
    """
    with Undo() as undo, undo:
        return carry_out_(model, history, edit, undo, initializer=initializer, optimizer=optimizer)


def carry_out_(
    model: nn.Module,
    history: History,
    edit: Edit,
    undo: Undo,
    *,
    initializer: str,
    optimizer: object,
) -> Edit:
    """Carries out a planned edit, as the first part of something that may still fail."""
    edit = replace(edit, initializer=initializer)
    initialise, optimizers = initializer_of(initializer), listed(optimizer)
    keep_surroundings_(model, undo)
    with torch.inference_mode(mode=False):  # blocks made there could never train
        prepared = [_prepare(history, edit, change, initialise) for change in edit.changes]
    joining = plan_joining(optimizers, _new_parameters(prepared), edit.generation)
    keep_(history, undo)
    if edit.closes is not None:
        close_(model, history, undo)
    holders = holders_in(model)
    for item in prepared:
        _place_(history, item, holders, undo)
    for number in edit.numbers:
        change_(history.modules[number.module], number.attribute, number.value[1], undo)
    join_(joining, undo)
    groups = history.graph.groups.grown(edit.growth)
    history.graph = replace(history.graph, groups=groups)
    history.modules = structure(model)
    history.generation = edit.generation
    history.edits = [*history.edits, edit]
    return edit


def _prepare(
    history: History, edit: Edit, change: LayerChange, initialise: Initializer
) -> _Prepared:
    module = history.modules[change.name]
    split = module if isinstance(module, SplitLayer) else SplitLayer(module)
    if split is not module:
        # A norm that is held is in evaluation whatever the mode; what is new must not be.
        parent = history.modules[change.name.rpartition(".")[0]]
        split.training = parent.training if held(module) else module.training
    before = (change.in_width[0], change.width[0])
    gain = (change.in_width[1] - before[0], change.width[1] - before[1])
    modules, blocks = list(split), list(split.blocks)
    for kind, sizes in planned_blocks(split.kind, split.original, before, gain).items():
        block = build_block(module, kind, sizes)
        initialise(block, kind, silent_channels(change, kind))
        _match_memory_format(block, split.original)
        modules.append(block.train(split.training))
        blocks.append(Block("helper" if kind == "helper" else "new", edit.index))
    return _Prepared(
        change,
        split,
        modules,
        blocks,
        split.ins.inserted(change.ins, edit.index),
        split.outs.inserted(change.outs, edit.index),
    )


def _match_memory_format(block: nn.Module, original: nn.Module) -> None:
    """Keeps a model channels-last that is."""
    weight = getattr(original, "weight", None)
    if weight is None or weight.dim() != 4 or weight.is_contiguous():
        return
    if weight.is_contiguous(memory_format=torch.channels_last):
        block.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _new_parameters(prepared: list[_Prepared]) -> Iterator[NewParameter]:
    for item in prepared:
        for index in range(len(item.split), len(item.modules)):
            for name, parameter in item.modules[index].named_parameters():
                older = [getattr(block, name, None) for block in item.split]
                known = tuple(p for p in older if p is not None)
                yield NewParameter(f"{item.change.name}.{index}.{name}", parameter, known)


def close_(model: nn.Module, history: History, undo: Undo) -> None:
    """Closes the open generation: freezes it, and takes down how far its fades have come."""
    shares = [(m, m.alpha) for m in model.modules() if isinstance(m, FadeIn)]
    history.shares = {**history.shares, history.generation: shares}
    history.frozen = {**history.frozen, history.generation: freeze_(model, undo)}


def _place_(history: History, item: _Prepared, holders: Holders, undo: Undo) -> None:
    """Puts a layer's new blocks in place, and a split layer where there was a stock layer."""
    split = item.split
    set_blocks_(split, (item.modules, item.blocks), (item.ins, item.outs), undo)
    replaced = history.modules[item.change.name]
    if replaced is not split:
        put_in_place_(holders, replaced, split, undo)


Holders = Mapping[int, Sequence[tuple[dict[str, Any], str]]]
"""For each module, by its id, the dictionaries that hold it, with its names there."""


def holders_in(model: nn.Module) -> Holders:
    """Who holds the modules of a model."""
    holders: dict[int, list[tuple[dict[str, Any], str]]] = {}
    for module in model.modules():
        for name, child in module._modules.items():  # noqa: SLF001
            holders.setdefault(id(child), []).append((module._modules, name))  # noqa: SLF001
    return holders


def put_in_place_(holders: Holders, old: nn.Module, new: nn.Module, undo: Undo) -> None:
    """Puts a module in the place of another, wherever that is held."""
    for children, name in holders[id(old)]:
        undo.on_failure(partial(children.__setitem__, name, old))
        children[name] = new


def set_blocks_(
    split: SplitLayer,
    blocks: tuple[Sequence[nn.Module], Sequence[Block]],
    layouts: tuple[Layout, Layout],
    undo: Undo,
) -> None:
    """Gives a split layer other blocks.

    Args:
        split: The layer.
        blocks: The blocks, and what they are for.
        layouts: Where its inputs and outputs come from.
        undo: Takes it back.
    """
    undo.keep(vars(split))
    split.ins, split.outs = layouts
    split.set_blocks(*blocks)


def next_generation_(model: nn.Module, history: History) -> int:
    """Closes the open generation and opens the next; returns its number."""
    with Undo() as undo, undo:
        keep_(history, undo)
        close_(model, history, undo)
        history.generation += 1
        return history.generation


def unfreeze_all_(model: nn.Module, history: History) -> None:
    """Sets free everything that closing generations froze."""
    with Undo() as undo, undo:
        keep_(history, undo)
        unfreeze_(model, history.frozen_parameters(), undo)
        history.frozen = {}
        history.exact_from = history.generation


def parameters_of(model: nn.Module, history: History, generation: int) -> list[nn.Parameter]:
    """The parameters that were born in a generation, in the model's order."""
    check_structure(model, history)
    later: dict[int, int] = {}
    for wrapper in model.modules():
        for item in wrapper.inserted if isinstance(wrapper, Deepened) else ():
            born = history.edits[item.edit - 1].generation
            later.update((id(p), born) for p in getattr(wrapper, item.name).parameters())
    for module in model.modules():
        if isinstance(module, SplitLayer):
            for block, purpose in zip(module, module.blocks, strict=True):
                if purpose.edit:
                    born = history.edits[purpose.edit - 1].generation
                    later.update((id(parameter), born) for parameter in block.parameters())
    return [p for p in model.parameters() if later.get(id(p), 0) == generation]


def param_groups_of(
    model: nn.Module, history: History, options: Mapping[int, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A param group for each generation up to today's, and those that options are given for.

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
