"""The state of a training run, as trees: optimizers, schedulers, random states."""

from __future__ import annotations

import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from splitgrow.checkpoints.fitting import check_groups, check_scheduler, inner
from splitgrow.errors import CheckpointError, OptimizerError
from splitgrow.growth.optimizer_fitting import NAMED
from splitgrow.growth.rates import rates_in
from splitgrow.utils.json_trees import Writer, read_tree
from splitgrow.utils.rollback import Undo

Read = Callable[[str], Tensor]
"""Gives the tensor of a name."""


@dataclass(frozen=True)
class SavedGroup:
    """A param group of an optimizer.

    Attributes:
        params: The names of its parameters; None for one that is not the model's.
        options: Its options, as a tree.
    """

    params: tuple[str | None, ...]
    options: object


@dataclass(frozen=True)
class SavedState:
    """An optimizer's state of a parameter.

    Attributes:
        place: The parameter's place: the number of its group, and its own there.
        state: That state, as a tree.
        elsewhere: Of which of its tensors the device is another than the parameter's.
    """

    place: tuple[int, int]
    state: object
    elsewhere: tuple[str, ...]


@dataclass(frozen=True)
class SavedOptimizer:
    """An optimizer."""

    type: str
    groups: tuple[SavedGroup, ...]
    states: tuple[SavedState, ...]


@dataclass(frozen=True)
class SavedScheduler:
    """A scheduler, or any other object with a state_dict."""

    type: str
    state: object


# -- optimizers ----------------------------------------------------------------------------------


def saved_optimizer(
    optimizer: Optimizer, names: Mapping[int, str], writer: Writer, where: str
) -> SavedOptimizer:
    """An optimizer as data.

    Args:
        optimizer: The optimizer.
        names: The names of the model's parameters, by their ids.
        writer: Collects the tensors.
        where: Its name.

    Raises:
        CheckpointError: If it holds something that is no plain data.
    """
    groups, places = [], {}
    for number, group in enumerate(optimizer.param_groups):
        params = group["params"]
        places.update({id(p): (number, index) for index, p in enumerate(params)})
        options = {k: v for k, v in group.items() if k not in {"params", "param_names"}}
        tree = writer.written(options, f"{where}.group{number}", keep_objects=True)
        groups.append(SavedGroup(tuple(names.get(id(p)) for p in params), tree))
    states = []
    for parameter, state in optimizer.state.items():
        if id(parameter) not in places:
            raise CheckpointError(
                f"{where} ({type(optimizer).__name__}) keeps state of something that is in none of "
                f"its param groups"
            )
        place = places[id(parameter)]
        name = names.get(id(parameter), f"group{place[0]}.{place[1]}")
        elsewhere = tuple(
            str(key)
            for key, value in state.items()
            if isinstance(value, Tensor) and value.device != parameter.device
        )
        states.append(SavedState(place, writer.written(dict(state), f"{where}.{name}"), elsewhere))
    others = [k for k in optimizer.state_dict() if k not in {"state", "param_groups", NAMED}]
    if others:
        raise CheckpointError(
            f"{where} ({type(optimizer).__name__}) keeps {', '.join(others)} besides its state and "
            f"its param groups; save that as `extra`"
        )
    return SavedOptimizer(type(optimizer).__name__, tuple(groups), tuple(states))


def check_types(
    what: str, saved: Sequence[SavedOptimizer | SavedScheduler], given: Sequence[object]
) -> None:
    """Makes sure that optimizers or schedulers, if given, are of the types that were saved.

    Raises:
        CheckpointError: If they are not.
    """
    there, here = [item.type for item in saved], [type(item).__name__ for item in given]
    if given and there != here:
        raise CheckpointError(f"saved was {_counted(what, there)}, given is {_counted(what, here)}")


def _counted(what: str, types: Sequence[str]) -> str:
    if not types:
        return f"no {what}"
    return f"the {what} {types[0]}" if len(types) == 1 else f"the {what}s {', '.join(types)}"


def restore_optimizer_(
    optimizer: Optimizer,
    saved: SavedOptimizer,
    named: Mapping[str, nn.Parameter],
    gone: Iterable[nn.Parameter],
    read: Read,
    undo: Undo,
) -> None:
    """Gives an optimizer the groups and the state that were saved.

    Args:
        optimizer: The optimizer.
        saved: The saved optimizer.
        named: The model's parameters by name.
        gone: Parameters that the model had before it was loaded.
        read: Reads tensors.
        undo: Takes it back.

    Raises:
        CheckpointError: If it does not fit the model or the optimizer.
    """
    own = {id(parameter) for parameter in (*named.values(), *gone)}
    names = {id(parameter): name for name, parameter in named.items()}
    groups = []
    for number, group in enumerate(saved.groups):
        before = (optimizer.param_groups[number:] or [{"params": []}])[0]
        foreign = iter([p for p in before["params"] if id(p) not in own])
        params = [_parameter(name, named, foreign, number) for name in group.params]
        made = {"params": params, **_options(group, read, before)}
        if "param_names" in before:
            made["param_names"] = [names.get(id(p), "") for p in params]
        groups.append(made)
    kept = {id(p) for group in groups for p in group["params"]}
    if any(id(p) not in own | kept for group in optimizer.param_groups for p in group["params"]):
        raise CheckpointError(
            f"the {saved.type} has parameters that are neither the model's nor the saved one's"
        )
    state: dict[Any, Any] = defaultdict(dict)
    for item in saved.states:
        parameter = _at(groups, item.place)
        state[parameter] = _state(item, read, parameter)
    check_groups(optimizer, groups, state)
    _check_rates(groups)
    undo.on_failure(partial(vars(optimizer).update, param_groups=optimizer.param_groups))
    undo.on_failure(partial(vars(optimizer).update, state=optimizer.state))
    optimizer.param_groups, optimizer.state = groups, state  # type: ignore[assignment]


def _check_rates(groups: Iterable[Mapping[str, Any]]) -> None:
    for group in groups:
        try:
            rates_in(group)
        except OptimizerError as error:
            raise CheckpointError(f"of the saved optimizer {error}") from error


def _parameter(
    name: str | None, named: Mapping[str, nn.Parameter], foreign: Any, number: int
) -> nn.Parameter:
    found: nn.Parameter | None = next(foreign, None) if name is None else named.get(name)
    if found is None:
        what = "that is not the model's" if name is None else f"`{name}`, which the model has not"
        raise CheckpointError(f"group {number} of the saved optimizer has a parameter {what}")
    return found


def _options(group: SavedGroup, read: Read, before: Mapping[str, Any]) -> dict[str, Any]:
    options = read_tree(group.options, read, before)
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise CheckpointError("a param group of the saved optimizer has no options")
    for name in ("params", "param_names"):
        options.pop(name, None)
    return options


def _at(groups: Sequence[Mapping[str, Any]], place: tuple[int, int]) -> nn.Parameter:
    try:
        if min(place) >= 0:
            found: nn.Parameter = groups[place[0]]["params"][place[1]]
            return found
    except IndexError:
        pass
    raise CheckpointError(f"the saved optimizer has state of a parameter at {place}, where is none")


def _state(item: SavedState, read: Read, parameter: nn.Parameter) -> dict[Any, Any]:
    state = read_tree(item.state, read)
    if not isinstance(state, dict):
        raise CheckpointError("the saved optimizer has a state that is none")
    for key, value in state.items():
        if isinstance(value, Tensor):
            device = torch.device("cpu") if str(key) in item.elsewhere else parameter.device
            if value.shape == parameter.shape:  # in the order in memory that the parameter has
                like = torch.empty_like(parameter, dtype=value.dtype, device=device)
                state[key] = like.detach().copy_(value)
            else:
                state[key] = value.to(device, copy=True)
    return state


# -- schedulers ----------------------------------------------------------------------------------


def schedulers_of(scheduler: object) -> list[Any]:
    """The schedulers that were given: none, one or several things that have a state_dict.

    Raises:
        TypeError: If something else was given.
    """
    if scheduler is None:
        return []
    several = isinstance(scheduler, Iterable) and not isinstance(scheduler, str)
    found = [*scheduler] if several and not hasattr(scheduler, "state_dict") else [scheduler]  # type: ignore[misc]
    for item in found:
        if not hasattr(item, "state_dict") or not hasattr(item, "load_state_dict"):
            raise TypeError(f"a scheduler must have state_dict and load_state_dict, got {item!r}")
    return found


def saved_scheduler(scheduler: Any, writer: Writer, where: str) -> SavedScheduler:
    """A scheduler as data."""
    tree = writer.written(scheduler.state_dict(), where, keep_objects=True)
    return SavedScheduler(type(scheduler).__name__, tree)


def restore_scheduler_(scheduler: Any, saved: SavedScheduler, read: Read, undo: Undo) -> None:
    """Gives a scheduler the state that was saved.

    Raises:
        CheckpointError: If it does not take it.
        MemoryError: If there is too little memory, which says nothing of the file.
    """
    before = scheduler.state_dict()
    state = read_tree(saved.state, read, before)
    check_scheduler(scheduler, state)
    for each in (scheduler, *inner(scheduler)):
        undo.on_failure(partial(_put_back, each, dict(getattr(each, "__dict__", {}))))
    undo.on_failure(partial(scheduler.load_state_dict, dict(before)))
    try:
        scheduler.load_state_dict(state)
    except MemoryError:
        raise
    except Exception as error:
        raise CheckpointError(f"the {saved.type} does not take its saved state: {error}") from error


def _put_back(scheduler: Any, attributes: Mapping[str, Any]) -> None:
    """Gives a scheduler the attributes that it had, and no others."""
    for name in getattr(scheduler, "__dict__", {}).keys() - attributes.keys():
        del scheduler.__dict__[name]
    getattr(scheduler, "__dict__", {}).update(attributes)


# -- randomness and devices ----------------------------------------------------------------------


_NUMPYS = 624
"""The numbers that the state of numpy's generator has, as those of torch and Python have."""


def random_states() -> dict[str, Any]:
    """The states of all global random number generators: torch's, Python's, numpy's if in use."""
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None:
        name, keys, *rest = numpy.random.get_state()
        states["numpy"] = (name, torch.from_numpy(keys.copy()), *rest)
    return states


def set_random_states_(states: Any, undo: Undo) -> None:
    """Sets the states of all global random number generators.

    Raises:
        CheckpointError: If they are none.
        MemoryError: If there is too little memory, which says nothing of the file.
    """
    before = random_states()
    undo.on_failure(partial(_set_random_states, before))
    try:
        _set_random_states(states)
    except MemoryError:
        raise
    except Exception as error:
        raise CheckpointError(f"the random states of the file are none: {error}") from error


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    for index, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(state, index)
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and "numpy" in states:
        name, keys, *rest = states["numpy"]
        if not 0 <= rest[0] <= keys.numel() == _NUMPYS:  # numpy would read beyond its end
            raise ValueError(f"numpy's generator cannot be at {rest[0]}")
        numpy.random.set_state((name, keys.numpy(), *rest))
