"""Whether optimizers and schedulers could continue with the states in a file."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from splitgrow.errors import CheckpointError

# -- optimizers ----------------------------------------------------------------------------------


def check_groups(
    optimizer: Optimizer,
    groups: Sequence[Mapping[str, Any]],
    state: Mapping[nn.Parameter, Mapping[Any, Any]],
) -> None:
    """Makes sure that one of torch's optimizers can take a step with groups and state.

    An optimizer of its type and options is tried out on a small parameter: which options it takes,
    and which of its tensors are of the parameter's shape, nobody could tell better.

    Raises:
        CheckpointError: If it cannot; or if a parameter is in the groups twice.
    """
    params = [parameter for group in groups for parameter in group["params"]]
    if len({*params}) < len(params):
        raise CheckpointError("the saved optimizer has a parameter twice")
    for number, group in enumerate(groups):
        missing = {*optimizer.defaults} - {*group}
        if missing:
            raise CheckpointError(
                f"group {number} of the saved optimizer has no {', '.join(sorted(missing))}"
            )
        like = next((p for p in group["params"] if p.is_floating_point()), None)
        if not type(optimizer).__module__.startswith("torch.optim.") or like is None:
            continue
        if _tried(optimizer, optimizer.defaults, like) is None:
            continue  # it wants something that is not known here, such as a closure
        made = _tried(optimizer, group, like)
        if made is None:
            raise CheckpointError(
                f"the options of group {number} of the saved optimizer are none that a "
                f"{type(optimizer).__name__} could take"
            )
        for parameter in group["params"]:
            if state.get(parameter):
                _check_state(optimizer, group, made, parameter, state[parameter])


def _tried(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    like: Tensor,
    state: Mapping[Any, Any] | None = None,
) -> dict[Any, Any] | None:
    """An optimizer's state of a small parameter after a step with a group's options.

    None if it could not take that step.

    Raises:
        MemoryError: If there is too little memory, which says nothing of the file.
    """
    kind: Any = type(optimizer)
    asked = inspect.signature(kind).parameters
    options = copy.deepcopy({key: group[key] for key in optimizer.defaults})
    parameter = nn.Parameter(torch.zeros(2, 3, dtype=like.dtype, device=like.device))
    parameter.grad = torch.zeros_like(parameter)
    try:
        tried = kind([parameter], **{key: options[key] for key in asked if key in options})
        tried.param_groups[0].update(options)
        if state is not None:
            tried.state[parameter] = dict(state)
        tried.step()
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - anything may keep it from a step
        return None
    return dict(tried.state[parameter])


def _check_state(
    optimizer: Optimizer,
    group: Mapping[str, Any],
    made: Mapping[Any, Any],
    parameter: nn.Parameter,
    state: Mapping[Any, Any],
) -> None:
    """Makes sure that a parameter's state is of the form that the optimizer gives it.

    Raises:
        CheckpointError: If it is not.
    """
    for key, one in made.items():
        found = state.get(key)
        if found is None or not isinstance(one, Tensor):
            continue
        fits = isinstance(found, Tensor) and found.is_floating_point() == one.is_floating_point()
        if fits and one.shape == (2, 3):
            fits = found.shape == parameter.shape
        elif fits and one.numel() == 1:
            fits = found.numel() == 1
        if not fits:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise CheckpointError(
                f"the saved optimizer has {shape} as the {key!r} of a parameter of the shape "
                f"{tuple(parameter.shape)}"
            )
    there = {key: value for key, value in made.items() if state.get(key) is not None}
    if len(there) < len(made) and _tried(optimizer, group, parameter, there) is None:
        raise CheckpointError(
            f"the saved optimizer lacks {', '.join(map(str, {*made} - {*there}))} of a parameter"
        )


# -- schedulers ----------------------------------------------------------------------------------


def check_scheduler(scheduler: Any, state: Any) -> None:
    """Makes sure that a scheduler's saved state would not replace its own parts.

    Those of torch set every given value as an attribute.

    Raises:
        CheckpointError: If it would.
    """
    own = scheduler.state_dict()
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"the saved {type(scheduler).__name__} has no state")
    torchs = type(scheduler).__module__.startswith("torch.")
    for key, value in state.items():
        known = _alike(own[key], value) if key in own else not hasattr(scheduler, key)
        if not known and (torchs or key not in own or key == "_schedulers"):
            raise CheckpointError(
                f"the saved {type(scheduler).__name__} has {value!r:.60} as `{key}`"
            )
    missing = {*own} - {*state} if torchs or "_schedulers" in own else set()
    if missing:
        raise CheckpointError(f"the saved {type(scheduler).__name__} lacks {sorted(missing)[0]}")
    parts = inner(scheduler)
    if parts and len(state["_schedulers"]) != len(parts):
        raise CheckpointError(f"the saved {type(scheduler).__name__} is of other schedulers")
    for one, other in zip(parts, state.get("_schedulers", ()), strict=False):
        check_scheduler(one, other)


def inner(scheduler: Any) -> Sequence[Any]:
    """The schedulers that another runs in turn."""
    found = getattr(scheduler, "__dict__", {}).get("_schedulers")
    return found if isinstance(found, (list, tuple)) else ()


def _alike(mine: Any, other: Any) -> bool:
    """Whether a value could stand where another is."""
    if mine is None:
        return True
    if isinstance(mine, (bool, str)):
        return type(mine) is type(other)
    if _is_number(mine):
        return _is_number(other)
    if type(mine) is not type(other):
        return False
    if isinstance(mine, (list, tuple)):
        return not mine or all(_alike(mine[0], item) for item in other)
    return True


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float)) and not isinstance(value, bool)
