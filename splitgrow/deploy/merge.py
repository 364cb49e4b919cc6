"""Making a grown model plain again: stock layers at the same paths, in the user's own class."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from splitgrow.deploy.deploy_check import held_against
from splitgrow.errors import MergeError, UnsupportedModelError
from splitgrow.growth.growable_class import original_class
from splitgrow.growth.history import History, check_structure
from splitgrow.growth.history_lookup import HISTORY, history_of
from splitgrow.growth.module_numbers import numbers_at, set_number_
from splitgrow.layers.containers import spread_blocks_
from splitgrow.layers.fade import FadeIn
from splitgrow.layers.freezing import held, parameters_in, release_
from splitgrow.layers.hooks import has_hooks, has_state_hooks, named_paths, refuse_own_hooks
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.layers.module_state import State, put_
from splitgrow.layers.plain_copy import plain_copy
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import make_plain_
from splitgrow.layers.types.parametrized_layers import own_tensors
from splitgrow.layers.unwrap import end_own_fades_
from splitgrow.utils.rollback import Undo, all_or_nothing
from splitgrow.utils.source_lines import levels_to_caller
from splitgrow.utils.wrappers import is_sharded


def merge(model: nn.Module, generation: int | None = None, *, check: bool = True) -> nn.Module:
    """A new, plain model of the same class that computes the same; the model is untouched.

    Every grown layer is one stock layer again, at the same path, and nothing of splitgrow is left.
    Frozen parameters train again. A module that layers were inserted at becomes an nn.Sequential,
    or a torch.fx.GraphModule where they are added or multiplied. It keeps its wrapper, which passes
    everything on, if it takes any number of arguments, gives several results, or if forward asks it
    for more than its result (a weight's dtype, say). A `FadeIn` that is over keeps its new path
    only; an inserted one that has not begun keeps the old path only; one that is under way stays.

    Hooks are copied: those of a grown layer lie on the stock layer. If their module is gone, a
    warning names it. The values that `torch.nn.utils.weight_norm`, `spectral_norm` or `prune`
    compute for a block of a grown layer become a part of the weight.

    Args:
        model: A growable model, grown or not.
        generation: The generation to recover: the network as it was when that was closed. Default:
            the network of today.
        check: Whether to run both on the example inputs, in evaluation mode, and compare. That is
            left out for tensors on the meta device and where torch.distributed knows several
            processes, whose runs might wait for each other; a model that does not run on its
            example inputs is not compared either, with a warning. Unchecked, a `FadeIn` of the
            model's own stays.

    Raises:
        MergeError: If the two compute something different.
        TypeError: If an argument is of another type.
        ValueError: If there is no such generation.
        GenerationError: If the generation is no longer exact because of `unfreeze`.
        StructureChangedError: If the model was changed by hand since the generation was closed.
        UnsupportedModelError: If FSDP has sharded the model, or a single block of a grown layer has
            hooks of its own, which no plain layer could run, or something in the model cannot be
            copied.
        SplitGrowError: If the model was never made growable.

    Example:
        >>> import torch, splitgrow
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> edit = net.expand_layer("0", 2)
        >>> splitgrow.merge(net)
        Sequential(
          (0): Linear(in_features=2, out_features=5, bias=True)
          (1): Linear(in_features=5, out_features=1, bias=True)
        )
        >>> splitgrow.merge(net, generation=0)[0]
        Linear(in_features=2, out_features=3, bias=True)
    """
    history = history_of(model)
    history.model_lock.refuse_if_shown("merge")
    with history.model_lock.rlock:
        return merged(model, history, generation, check=check)


def merged(
    model: nn.Module, history: History, generation: int | None, *, check: bool, spread: bool = True
) -> nn.Module:
    """Does the work of `merge`, in a thread that has the model to itself.

    Args:
        model: The model.
        history: Its history.
        generation: The generation; None for today.
        check: Whether the two are compared.
        spread: Whether inserted blocks become entries of the containers that hold their neighbours,
            if the model then computes the same.

    Raises:
        MergeError: If the two compute something different.
    """
    history.refuse_while_viewing("merge")
    view = history.view_of(generation)
    shares = history.shares.get(generation or 0, ()) if view is not None else ()
    states = history.states.get(generation or 0, ()) if view is not None else ()
    spread = spread and any(isinstance(module, InsertionWrapper) for module in model.modules())
    with torch.inference_mode(mode=False):  # so that the merged model can be trained
        plain = merged_at(model, history, view, dict(shares), states, spread=spread)
    if not check:
        return plain
    try:
        return checked_(plain, model, history, generation, spread=spread)
    except MergeError:
        if not spread:
            raise
    return merged(model, history, generation, check=check, spread=False)


@all_or_nothing
def checked_(
    undo: Undo,
    plain: nn.Module,
    model: nn.Module,
    history: History,
    generation: int | None,
    *,
    spread: bool = False,
) -> nn.Module:
    """A merged model that was compared with its source, and has no fades that are over.

    Raises:
        MergeError: If the two compute something different.
    """
    # The model's own code may use more of a fade than its output, which only a run shows.
    ended = end_own_fades_(plain, undo)
    verdict = held_against(model, history, generation, plain, "merge", spread=spread)
    if ended and (verdict.fault or not verdict.compared):
        undo.take_back()
        verdict = held_against(model, history, generation, plain, "merge", spread=spread)
    if verdict.fault:
        raise MergeError(f"the merged model {verdict.fault}; {_WAY_OUT}")
    return plain


_WAY_OUT = (
    "if the model was changed since it was analysed (a hook, a module's attribute), "
    "splitgrow.growable(model, example_inputs) finds out what that means; otherwise please report "
    "this. `check=False` gives the merged model all the same"
)


def merged_at(
    model: nn.Module,
    history: History,
    view: int | None,
    fades: Mapping[FadeIn, float],
    states: Iterable[State] = (),
    *,
    spread: bool = False,
) -> nn.Module:
    """A new, plain model that computes the same as a model after an edit.

    Args:
        model: The model.
        history: Its history.
        view: The number of the edit; None for today.
        fades: How far each fade had come.
        states: The modules' state then, besides parameters; by default today's.
        spread: Whether inserted blocks become entries of the containers that hold their neighbours.

    Raises:
        StructureChangedError: If the model was changed by hand since.
        UnsupportedModelError: If FSDP has sharded the model.
    """
    if is_sharded(model):
        raise UnsupportedModelError(
            "FSDP has sharded the model, of which no process has all; merge it inside `with "
            "splitgrow.distributed.gathered(model) as whole`"
        )
    if view is not None:
        check_structure(model, history)
    _refuse_hooks_of_blocks(model, view)
    frozen = {id(parameter) for parameter in parameters_in(history.frozen_parameters())}
    # The copy takes these in place of copies that it would make itself.
    memo: dict[int, Any] = {
        id(own): None for part in model.modules() if (own := vars(part).get(HISTORY)) is not None
    }
    numbers = numbers_at(history.edits, view) if view is not None else {}

    def finish(split: SplitLayer, layer: nn.Module) -> None:
        _set_training(split, layer, frozen)

    def last(copied: nn.Module) -> None:
        put_(states, memo)
        if spread:
            spread_blocks_(copied, view)

    plain = plain_copy(model, view, memo, finish, shares=fades, last=last)
    make_plain_(plain)
    for (name, attribute), number in numbers.items():
        holder = memo.get(id(history.modules[name]))
        if holder is not None:
            set_number_(holder, attribute, number)
    _forget_(plain)
    for key in frozen & memo.keys():
        memo[key].requires_grad_(True)
    _tell_of_lost_hooks(model, view, plain, memo)
    return plain


def _forget_(plain: nn.Module) -> None:
    """Gives modules their users' classes again, and lets their statistics move."""
    for module in plain.modules():
        if vars(module).pop(HISTORY, None) is not None or module is plain:
            module.__class__ = original_class(module)
        if held(module):
            release_(module, training=plain.training)


def _set_training(split: SplitLayer, plain: nn.Module, frozen: set[int]) -> None:
    for name, parameter in plain.named_parameters():
        parts = [own for block in split for own in own_tensors(block, name)]
        trains = any(own.requires_grad or id(own) in frozen for own in parts)
        parameter.requires_grad_(trains)


def _refuse_hooks_of_blocks(model: nn.Module, view: int | None) -> None:
    """Makes sure that no block of a grown layer has hooks that a plain layer could not run.

    Raises:
        UnsupportedModelError: If one has.
    """
    computed = refuse_own_hooks(
        (f"{path}.{index}", block)
        for path, split in model.named_modules()
        for index, block in enumerate(_blocks_of(split, view))
    )
    if computed:
        warnings.warn(
            f"what hooks of torch.nn.utils compute for {named_paths(computed)} is part of the "
            f"merged layer's tensors, which are parameters without such hooks",
            stacklevel=levels_to_caller(),
        )


def _blocks_of(module: nn.Module, view: int | None) -> tuple[nn.Module, ...]:
    return module.composition(view).modules if isinstance(module, SplitLayer) else ()


def _tell_of_lost_hooks(
    model: nn.Module, view: int | None, plain: nn.Module, memo: Mapping[int, Any]
) -> None:
    """Warns of hooks whose module is gone, and of hooks on the state_dicts of grown layers."""
    there = {id(part) for part in plain.modules()}
    unseen = {id(part) for part in _unseen(model, view)}
    lost = []
    for path, part in model.named_modules():
        left_out = isinstance(part, (SplitLayer, InsertionWrapper)) and has_state_hooks(part)
        twin = memo.get(id(part))  # a wrapper's hooks go to the module in its place
        gone = left_out or (id(twin) not in there and not isinstance(part, InsertionWrapper))
        if has_hooks(part) and gone and id(part) not in unseen:
            lost.append(path or type(model).__name__)
    if lost:
        warnings.warn(
            f"the merged model has nothing that could run the hooks of {named_paths(lost)}",
            stacklevel=levels_to_caller(),
        )


def _unseen(model: nn.Module, view: int | None) -> Iterator[nn.Module]:
    """The modules that came after an edit, and those inside of grown layers."""
    for module in model.modules():
        if isinstance(module, SplitLayer):
            for block in module:
                yield from block.modules()
        elif isinstance(module, InsertionWrapper):
            for item in module.inserted:
                if view is not None and item.edit > view:
                    yield from module.part(item.name).modules()
