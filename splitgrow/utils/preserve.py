"""Runs of a model's forward that leave the model and its surroundings as they were."""

from __future__ import annotations

import logging
import random
import sys
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from enum import Enum
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from splitgrow.utils.module_slots import modules_of
from splitgrow.utils.rollback import Undo

_INSTALLED = ("hook_installed", "hooks_installed")
"""The names of attributes by which a module notes that its hooks are there."""


def preserve_(model: nn.Module, undo: Undo) -> None:
    """Makes `undo` restore all that a run of a model may change, and removes its hooks.

    The values of tensors are not kept: do not write into them.

    Args:
        model: Any module.
        undo: Restores the model, the random number generators and torch's modes.
    """
    modules = modules_of(model)
    keep_random_states_(modules, undo)
    keep_attributes_(modules, undo)
    remove_hooks_(modules)
    run_eagerly_(modules, undo)
    keep_modes_(undo)  # the last, so undone first: nothing can be restored in fake tensors


def keep_surroundings_(model: nn.Module, undo: Undo) -> None:
    """Makes `undo` restore all that an operation on a model may disturb outside of it."""
    keep_random_states_(modules_of(model), undo)
    keep_modes_(undo)


def keep_random_states_(modules: Iterable[nn.Module], undo: Undo) -> None:
    """Makes `undo` restore random number generators: Python's, numpy's, torch's, modules'."""
    for step in states_of_generators(modules):
        undo.on_failure(step)


def states_of_generators(modules: Iterable[nn.Module]) -> list[Callable[[], object]]:
    """The steps that restore random number generators, any number of times, as they are now."""
    modules, steps = list(modules), list[Callable[[], object]]()
    for module in modules:
        values = vars(module).values()
        for held in () if _PLAIN.issuperset(map(type, values)) else values:
            if isinstance(held, torch.Generator):
                steps.append(partial(held.set_state, held.get_state()))
    steps.append(partial(random.setstate, random.getstate()))
    numpy: Any = sys.modules.get("numpy")  # only if it is in use
    if numpy is not None:
        steps.append(partial(numpy.random.set_state, numpy.random.get_state()))
    steps.append(partial(torch.set_rng_state, torch.get_rng_state()))
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        own = (p for module in modules for p in module._parameters.values())  # noqa: SLF001
        for device in {p.device for p in own if p is not None and p.device.type == "cuda"}:
            state = torch.cuda.get_rng_state(device)
            steps.append(partial(torch.cuda.set_rng_state, state, device))
    return steps


def keep_modes_(undo: Undo) -> None:
    """Makes `undo` restore torch's modes, such as no_grad, and Python's warning filters.

    Contexts do that themselves, except one that is interrupted when it is about to leave.
    """
    undo.on_failure(partial(_set_filters, warnings.filters))
    undo.on_failure(partial(torch.set_grad_enabled, torch.is_grad_enabled()))
    for modes in (_get_current_function_mode_stack, _get_current_dispatch_mode_stack):
        undo.on_failure(partial(_leave_modes, modes, modes()))


def copy_buffers_(modules: Iterable[nn.Module], undo: Undo) -> None:
    """Has modules write into copies of their buffers, until `undo` restores the buffers."""
    for module in modules:
        buffers = module._buffers  # noqa: SLF001
        if any(buffer is not None for buffer in buffers.values()):
            undo.keep(buffers)
            for name, buffer in [*buffers.items()]:
                buffers[name] = None if buffer is None else buffer.detach().clone()


def ignore_logging_(logger: str, undo: Undo) -> None:
    """Ignores what a logger is told until `undo` restores it."""
    found = logging.getLogger(logger)
    undo.on_failure(partial(setattr, found, "disabled", found.disabled))
    found.disabled = True


def ignore_warnings_(beginning: str = "") -> None:
    """Ignores warnings that begin so, until the filters are restored."""
    _set_filters(list(warnings.filters))
    warnings.filterwarnings("ignore", message=beginning)


def _set_filters(filters: Any) -> None:
    warnings.filters = filters
    warnings._filters_mutated()  # type: ignore[attr-defined]  # noqa: SLF001 - as catch_warnings does


def _leave_modes(modes: Callable[[], list[Any]], known: list[Any]) -> None:
    for mode in reversed(modes()):
        if all(mode is not other for other in known):
            mode.__exit__(None, None, None)


_STORES = ("_parameters", "_buffers", "_modules")
_MAPPINGS = (dict, OrderedDict, defaultdict)
_CONTAINERS = frozenset((list, deque, set, *_MAPPINGS))
_NESTING = _CONTAINERS | {tuple}


def keep_attributes_(modules: Sequence[nn.Module], undo: Undo, *, tensors: bool = False) -> None:
    """Makes `undo` restore the modules' attributes: forward may set some, and fill containers.

    It restores those of objects that the modules hold as well, and hooks: one may remove itself.

    Args:
        modules: The modules.
        undo: Restores the attributes.
        tensors: Whether forward is to find copies of tensors in containers, into which it may
            write.
    """
    kept = [module.__dict__ for module in modules]
    objects = {id(v): v for own in kept for _, v in _objects_in(own)}
    kept += [vars(value) for value in objects.values()]
    stores = [module.__dict__[name] for module in modules for name in _STORES]
    hooks, empty, others = list[Any](), list[Any](), list[tuple[dict[str, Any], str, Any]]()
    for place, own in enumerate(kept):
        own_stores = _STORES if place < len(modules) else ()
        for name, value in own.items():
            kind = type(value)
            if kind not in _NESTING or name in own_stores:
                continue
            if not value and kind in _CONTAINERS:  # as most are: of each module's eleven for hooks
                empty.append(value)
            elif kind is OrderedDict and "hook" in name:
                hooks.append(value)
            else:
                others.append((own, name, value))
    undo.keep(*kept, *stores, *hooks)
    undo.on_failure(partial(_clear, empty))
    apart = {id(value) for value in (*stores, *hooks)} if others else set()
    known: dict[int, tuple[Any, Any]] = {}
    types = _NESTING | {torch.Tensor} if tensors else _NESTING
    for own, name, value in others:
        if id(value) not in apart:
            own[name] = _unshared(value, known, types)


def _clear(empty: Iterable[Any]) -> None:
    for container in empty:
        if container:
            container.clear()


def _unshared(value: Any, known: dict[int, tuple[Any, Any]], types: Container[type]) -> Any:
    """A copy of a container, with one copy of each item in it that is of some types."""
    if id(value) in known:
        return known[id(value)][1]
    kind = type(value)
    if kind is torch.Tensor:
        copy: Any = value.detach().clone()
    elif kind is tuple:
        if not any([type(item) in types for item in value]):  # noqa: C419 - faster
            return value
        items = [_unshared(i, known, types) if type(i) in types else i for i in value]
        changed = any(new is not old for new, old in zip(items, value, strict=True))
        copy = tuple(items) if changed else value
    else:
        copy = value.copy()
    known[id(value)] = value, copy
    if kind in _CONTAINERS and kind is not set:
        for place, item in value.items() if kind in _MAPPINGS else enumerate(value):
            if type(item) in types:
                copy[place] = _unshared(item, known, types)
    return copy


def run_eagerly_(modules: Iterable[nn.Module], undo: Undo) -> None:
    """Keeps modules from being compiled: that takes longer than all that is looked at here.

    The caller restores the attributes of the modules.
    """
    for module in modules:
        if module.__dict__.get("_compiled_call_impl") is not None:
            module.__dict__["_compiled_call_impl"] = None
    dynamo: Any = sys.modules.get("torch._dynamo.eval_frame")  # only if it is in use
    if hasattr(dynamo, "_stance") and hasattr(torch.compiler, "set_stance"):
        undo.on_failure(partial(setattr, dynamo, "_stance", dynamo._stance))  # noqa: SLF001
        torch.compiler.set_stance("force_eager")


_NO_OBJECTS = (nn.Module, torch.Tensor, type, ModuleType, FunctionType, MethodType, Enum)
_PLAIN = frozenset((bool, int, float, str, type(None), list, tuple, set, *_MAPPINGS))
_PYTHONS = ("builtins.", "collections.", "functools.")


def objects_of(module: nn.Module) -> dict[str, Any]:
    """The objects of the user's classes, with attributes of their own, that a module holds."""
    return dict(_objects_in(vars(module)))


def _objects_in(attributes: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    plain = _PLAIN.issuperset(map(type, attributes.values()))
    for name, value in () if plain else attributes.items():
        if name in _STORES or isinstance(value, _NO_OBJECTS):
            continue
        if hasattr(value, "__dict__"):
            source = f"{type(value).__module__}."
            if not source.startswith(("splitgrow.", "torch.", *_PYTHONS)):
                yield name, value


def remove_hooks_(modules: Sequence[nn.Module]) -> None:
    """Removes the user's hooks, until the attributes are restored.

    A model of transformers notes that it has put hooks on its modules, by which it collects further
    outputs, at its first call. A run without hooks has to put them there again.
    """
    for module in modules:
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            module.__dict__[name] = OrderedDict()
        for name in [each for each in module.__dict__ if each.endswith(_INSTALLED)]:
            del module.__dict__[name]
