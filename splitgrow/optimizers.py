"""Handing new parameters to the optimizers that train the old ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import LBFGS, Adagrad, Optimizer

from splitgrow.errors import OptimizerError
from splitgrow.undo import Undo


@dataclass(frozen=True)
class NewParameter:
    """A parameter of a new block, with the one of the original block whose group it joins."""

    name: str
    parameter: nn.Parameter
    original: nn.Parameter


@dataclass(frozen=True)
class Joining:
    """A new parameter and the param group that it is to join."""

    optimizer: Optimizer
    group: dict[str, Any]
    new: NewParameter


def listed(optimizer: object) -> list[Optimizer]:
    """The optimizers that were given: none, one or several.

    Raises:
        TypeError: If something else was given.
        OptimizerError: If one of them keeps state that is not by parameter.
    """
    if optimizer is None:
        return []
    given = [optimizer] if isinstance(optimizer, Optimizer) else optimizer
    if not isinstance(given, Iterable):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer or several, got {optimizer!r}")
    optimizers = list(given)
    for item in optimizers:
        if not isinstance(item, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer or several, got {item!r}")
        if isinstance(item, LBFGS):
            raise OptimizerError(
                "LBFGS keeps one flat history of all parameters, which cannot take in new ones; "
                "grow without `optimizer=` and make a new LBFGS"
            )
    return optimizers


def plan_joining(optimizers: list[Optimizer], new: Iterable[NewParameter]) -> list[Joining]:
    """Where each new parameter goes: the group of the original weight (or bias) of its layer.

    Raises:
        OptimizerError: If original parameters are in no group; all of them are named.
    """
    if not optimizers:
        return []
    places: dict[int, list[tuple[Optimizer, dict[str, Any]]]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                places.setdefault(id(parameter), []).append((optimizer, group))
    joining: list[Joining] = []
    homeless: list[str] = []
    for item in new:
        found = places.get(id(item.original), [])
        joining.extend(Joining(optimizer, group, item) for optimizer, group in found)
        if not found:
            homeless.append(item.name)
    if homeless:
        raise OptimizerError(
            f"the optimizer does not train the layers that would get {', '.join(homeless)}; pass "
            f"the one that does, or grow without `optimizer=` and add "
            f"`model.generation_parameters()` to a param group of their own"
        )
    return joining


def join_(joining: Iterable[Joining], undo: Undo) -> None:
    """Adds new parameters to their groups. State that exists is not touched."""
    for item in joining:
        parameters = item.group["params"]
        _append(parameters, item.new.parameter, undo)
        if "param_names" in item.group:
            _append(item.group["param_names"], item.new.name, undo)
        if isinstance(item.optimizer, Adagrad):
            _give_state(item, undo)


def _append(items: list[Any], item: Any, undo: Undo) -> None:
    length = len(items)
    undo.on_failure(lambda: items.__delitem__(slice(length, None)))
    items.append(item)


def _give_state(item: Joining, undo: Undo) -> None:
    """Adagrad makes its state when it is constructed, not at the first step as the others do."""
    state, parameter = item.optimizer.state, item.new.parameter
    options = {name: item.group[name] for name in item.optimizer.defaults}
    undo.on_failure(lambda: state.pop(parameter, None))
    state[parameter] = Adagrad([parameter], **options).state[parameter]
