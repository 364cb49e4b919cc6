"""Making a grown model plain again: stock layers at the same paths, in the user's own class."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from splitgrow.attributes import hold_, numbers_at
from splitgrow.errors import UnsupportedModelError
from splitgrow.fading import FadeIn
from splitgrow.generations import held, parameters_in, release_
from splitgrow.growable import original_class
from splitgrow.handled import HISTORY, history_of
from splitgrow.history import History, check_structure
from splitgrow.plain import plain_copy
from splitgrow.split import SplitLayer
from splitgrow.states import State, put_
from splitgrow.wrapping import is_sharded


def merge(model: nn.Module, generation: int | None = None) -> nn.Module:
    """A new, plain model of the same class that computes the same; the model is untouched.

    Every grown layer is one stock layer again, at the same path, and nothing of splitgrow is left.
    What splitgrow froze trains again. A module that layers were inserted at becomes an
    nn.Sequential, or a torch.fx.GraphModule where they are added or multiplied; one that takes any
    number of arguments, gives several results, or is asked by forward for more than its result (a
    weight's dtype, say), keeps its wrapper, which passes everything on.

    Args:
        model: A growable model, grown or not.
        generation: The generation to recover: the network as it was when that was closed. Default:
            the network of today.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If there is no such generation.
        GenerationError: If the generation is no longer exact because of `unfreeze`.
        StructureChangedError: If the model was changed by hand since the generation was closed.
        UnsupportedModelError: If FSDP has sharded the model.
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
    history.gate.refuse_if_shown("merge")
    with history.gate.lock:
        history.refuse_while_viewing("merge")
        return _merged(model, history, generation)


def _merged(model: nn.Module, history: History, generation: int | None) -> nn.Module:
    view = history.view_of(generation)
    fades = history.shares.get(generation or 0, ()) if view is not None else ()
    states = history.states.get(generation or 0, ()) if view is not None else ()
    return merged_at(model, history, view, dict(fades), states)


def merged_at(
    model: nn.Module,
    history: History,
    view: int | None,
    fades: Mapping[FadeIn, float],
    states: Iterable[State] = (),
) -> nn.Module:
    """A new, plain model that computes what a model did after an edit.

    Args:
        model: The model.
        history: Its history.
        view: The number of the edit; None for today.
        fades: How far fades are to have come.
        states: What modules held then besides parameters; by default what they hold today.

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
    frozen = {id(parameter) for parameter in parameters_in(history.frozen_parameters())}
    # The copy takes these in place of what it would have made itself.
    memo: dict[int, Any] = {id(history): None}
    plain = plain_copy(model, view, memo, lambda split, layer: _set_training(split, layer, frozen))
    put_(states, {**memo, id(model): plain})
    vars(plain).pop(HISTORY, None)
    plain.__class__ = original_class(plain)
    for fade, alpha in fades.items():
        if id(fade) in memo:
            memo[id(fade)].alpha = alpha
    for (name, attribute), number in numbers_at(history.edits, view).items():
        held_by = history.modules[name]
        hold_(memo[id(held_by)] if name else plain, attribute, number)
    for module in plain.modules():
        if held(module):
            release_(module, training=plain.training)
    for key in frozen & memo.keys():
        memo[key].requires_grad_(True)
    return plain


def _set_training(split: SplitLayer, plain: nn.Module, frozen: set[int]) -> None:
    for name, parameter in plain.named_parameters():
        parts = [getattr(block, name, None) for block in split]
        trains = any(p is not None and (p.requires_grad or id(p) in frozen) for p in parts)
        parameter.requires_grad_(trains)
