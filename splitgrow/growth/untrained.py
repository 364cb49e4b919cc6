"""New parameters that no optimizer trains, and optimizer state of other shapes than parameters.

Growth cannot know who will train the new parameters: an optimizer may be told later, or made anew.
So the next steps of optimizers are watched. A step by one that trains the rest of the model, while
nobody trains the new parameters, is worth a warning; then, or once they are found in an optimizer,
the watch ends, and steps cost nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, ref

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from splitgrow.errors import SplitGrowWarning
from splitgrow.growth.averages import warn_of_copies_behind
from splitgrow.growth.optimizer_fitting import check_shapes, parameters_of
from splitgrow.growth.optimizers import in_optimizers
from splitgrow.utils.rollback import Undo
from splitgrow.utils.source_lines import levels_to_caller


@dataclass(frozen=True)
class _Watch:
    """The new parameters of a model that no optimizer was seen to train.

    Attributes:
        what: The operation that added the last of them.
        new: The parameters.
        gone: The parameters that the model had before, and no longer has.
        loaded: Whether a state_dict or a file brought them, so that averages may have been
            loaded since, too.
        others: The optimizers that do not train the model.
    """

    what: str
    new: tuple[ref[nn.Parameter], ...]
    gone: tuple[ref[nn.Parameter], ...] = ()
    loaded: bool = False
    others: WeakSet[Optimizer] = field(default_factory=WeakSet)


_watched: WeakKeyDictionary[nn.Module, _Watch] = WeakKeyDictionary()
_hooks: list[RemovableHandle] = []
"""The hook on all optimizers' steps, while a model is watched."""


def watch_new_(
    model: nn.Module,
    what: str,
    new: Iterable[nn.Parameter],
    optimizers: Iterable[Optimizer],
    undo: Undo,
    *,
    gone: Iterable[nn.Parameter] = (),
    loaded: bool = False,
) -> None:
    """Watches whether the parameters that a model has gained will be trained.

    Args:
        model: The model.
        what: The operation that added them, for the warning.
        new: The parameters.
        optimizers: The optimizers that were told of them.
        undo: Ends the watch.
        gone: The parameters that it had before, and no longer has.
        loaded: Whether a state_dict or a file brought them.
    """
    trained = set(map(id, [p for each in optimizers for p in parameters_of(each)]))
    gained = list(new)
    missing = [p for p in gained if id(p) not in trained]
    if not any(p.requires_grad for p in missing) and not (loaded and gained):
        return
    watch = _watched.get(model)
    undo.on_failure(partial(_set, model, watch))
    last = watch or _Watch(what, ())
    refs = (*last.new, *(ref(p) for p in missing))
    gone_refs = (*last.gone, *map(ref, gone))
    _set(model, _Watch(what, refs, gone_refs, loaded or last.loaded))


def _set(model: nn.Module, watch: _Watch | None) -> None:
    """Begins or ends the watch of a model."""
    if watch is not None:
        _watched[model] = watch
    else:
        _watched.pop(model, None)
    _keep_hook()


def _keep_hook() -> None:
    """Has the hook as long as a model is watched."""
    if _watched and not _hooks:
        _hooks.append(register_optimizer_step_pre_hook(_at_step))
    while _hooks and not _watched:
        _hooks.pop().remove()


def _at_step(optimizer: Optimizer, *_: Any) -> None:
    """Looks at an optimizer that is about to step."""
    if torch.compiler.is_compiling():  # an optimizer's compiled step is no place for this
        return
    for model, watch in list(_watched.items()):
        if optimizer not in watch.others:
            _look(model, watch, optimizer)
    _keep_hook()  # a model may be gone


def _look(model: nn.Module, watch: _Watch, optimizer: Optimizer) -> None:
    """Ends a model's watch if an optimizer trains it, with a warning if none trains all of it."""
    own = {id(parameter) for parameter in parameters_of(optimizer)}
    named = dict(model.named_parameters())
    paths = {id(p): name for name, p in named.items()}
    gone = {id(p) for item in watch.gone if (p := item()) is not None}
    if own.isdisjoint(paths) and own.isdisjoint(gone):
        watch.others.add(optimizer)
        return
    check_shapes(optimizer, {id(p): state for p, state in optimizer.state.items()}, named)
    alive = (item() for item in watch.new)
    new = [p for p in alive if p is not None and p.requires_grad and id(p) in paths]
    homeless = [p for p in new if id(p) not in own]
    elsewhere = in_optimizers(homeless)
    homeless = [p for p in homeless if id(p) not in elsewhere]
    _set(model, None)
    if watch.loaded:
        warn_of_copies_behind(model)
    if homeless:
        names = ", ".join(paths[id(p)] for p in homeless[:3])
        more = f" and {len(homeless) - 3} more" if len(homeless) > 3 else ""
        warnings.warn(
            f"no optimizer trains {names}{more}, new in this {type(model).__name__} since the last "
            f"step ({watch.what}); pass `optimizer=` when it grows, or give "
            f"`model.parameters_of(edit)` an optimizer of their own",
            SplitGrowWarning,
            stacklevel=levels_to_caller(),
        )
