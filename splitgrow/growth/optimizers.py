"""Adding new parameters to the optimizers that train the old ones."""

from __future__ import annotations

import gc
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import LBFGS, SGD, Adagrad, Optimizer

from splitgrow.errors import OptimizerError
from splitgrow.growth.group_members import Member, members_of, set_members_
from splitgrow.growth.optimizer_fitting import named_by_all_paths
from splitgrow.growth.rate_groups import whole_
from splitgrow.growth.rates import AS_THE_GROUP, WITHOUT_OPTIMIZER, Rates, check_rated
from splitgrow.utils.module_slots import all_parameters
from splitgrow.utils.rollback import Undo


@dataclass(frozen=True)
class NewParameter:
    """A new parameter, with the older ones beside it, whose group it joins.

    Attributes:
        name: Its path in the model.
        parameter: The parameter.
        older: The older parameters, of which the optimizer must train one: those of the same name
            in the layer's older blocks, the original's first; for an insertion those of the
            modules next to it.
        alike: The parameters that do the same elsewhere, best first. The new one joins the group
            of the first of them that the optimizer of the older ones trains; if it trains none,
            that of the first older one.
    """

    name: str
    parameter: nn.Parameter
    older: tuple[nn.Parameter, ...]
    alike: tuple[nn.Parameter, ...] = ()


@dataclass(frozen=True)
class Joining:
    """A new parameter, the param group that it joins, and its learning rate there."""

    optimizer: Optimizer
    group: dict[str, Any]
    new: NewParameter
    rates: Rates = AS_THE_GROUP


def optimizers_of(optimizer: object) -> list[Optimizer]:
    """The given optimizers: none, one or several.

    Raises:
        TypeError: If something else was given.
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
    return [unwrapped(item) for item in optimizers]


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside of those that trainers put around it and that share its param groups."""
    held = (value for value in vars(optimizer).values() if isinstance(value, Optimizer))
    inner = (one for one in held if one.param_groups is optimizer.param_groups)
    found = next((one for one in inner if one is not optimizer), None)
    return optimizer if found is None else unwrapped(found)


def listed(optimizer: object) -> list[Optimizer]:
    """The given optimizers, if they can take new parameters.

    Raises:
        TypeError: If something else was given.
        OptimizerError: If one of them keeps state that is not by parameter.
    """
    optimizers = optimizers_of(optimizer)
    for item in optimizers:
        whole_(item)
        if isinstance(item, LBFGS):
            raise OptimizerError(
                "LBFGS keeps one flat history of all parameters, which cannot take in new ones; "
                "grow without `optimizer=` and make a new LBFGS"
            )
        inner = _apart(item)
        if inner:
            kind = type(item).__name__
            raise OptimizerError(
                f"{kind} hands its parameters on to another optimizer, in its attribute `{inner}`, "
                f"which would not step new ones; grow without `optimizer=` and make a new {kind}"
            )
    return optimizers


def in_optimizers(parameters: Sequence[nn.Parameter]) -> set[int]:
    """Those parameters, by their ids, that a param group of any living optimizer has.

    Optimizers are not listed anywhere. So their groups are found among the objects that refer to
    the parameters: two looks through all objects, however many parameters there are.
    """
    if not parameters:
        return set()
    lists = [item for item in gc.get_referrers(*parameters) if type(item) is list]
    of_groups = {
        id(group["params"])
        for group in gc.get_referrers(*lists)
        if type(group) is dict and "params" in group
    }
    held = {id(item) for members in lists if id(members) in of_groups for item in members}
    return held & set(map(id, parameters))


def _apart(optimizer: Optimizer) -> str:
    """The attribute with an optimizer that steps for this one, from lists of its own; or empty."""
    lists = {id(group["params"]) for group in optimizer.param_groups}
    for name, value in vars(optimizer).items():
        if isinstance(value, Optimizer) and value is not optimizer:
            own = {id(group["params"]) for group in value.param_groups}
            if not lists <= own:
                return name
    return ""


def group_name(generation: int) -> str:
    """The name of a generation's param group."""
    return f"generation {generation}"


def plan_joining(
    optimizers: list[Optimizer],
    new: Iterable[NewParameter],
    generation: int | None = None,
    rates: Rates = AS_THE_GROUP,
) -> list[Joining]:
    """The group of each new parameter: that of the original weight (or bias) of its layer.

    If that group is named after a generation, and there is one named after `generation`, the
    parameter joins the latter. An optimizer made for a later generation does not train the original
    weight; then it is the group of the oldest block that it trains.

    Raises:
        ValueError: If there are rates, and no optimizer that could keep to them.
        OptimizerError: If none of a layer's blocks is in a group; all such layers are named. Or if
            parameters of a group cannot have rates of their own.
    """
    if not optimizers:
        if rates.own:
            raise ValueError(WITHOUT_OPTIMIZER)
        return []
    places: dict[int, list[tuple[Optimizer, dict[str, Any]]]] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            one = [(optimizer, group)]
            keys = map(id, group["params"])
            places.update({key: places[key] + one if key in places else one for key in keys})
    joining: list[Joining] = []
    homeless: list[str] = []
    for item in new:
        found = next((places[id(p)] for p in item.older if id(p) in places), [])
        for optimizer, group in found:
            alike = (places[id(p)] for p in item.alike if id(p) in places)
            own = (g for place in alike for o, g in place if o is optimizer)
            home = _of_generation(optimizer, next(own, group), generation)
            check_rated(rates, optimizer, home)
            joining.append(Joining(optimizer, home, item, rates))
        if not found:
            homeless.append(item.name)
    if homeless:
        raise OptimizerError(
            f"the optimizer does not train the layers that would get {', '.join(homeless)}; pass "
            f"the one that does, or grow without `optimizer=` and give "
            f"`model.parameters_of(edit)` an optimizer of their own"
        )
    return joining


def _of_generation(
    optimizer: Optimizer, group: dict[str, Any], generation: int | None
) -> dict[str, Any]:
    if generation is None or not str(group.get("name", "")).startswith(group_name(0)[:-1]):
        return group
    named = (
        other for other in optimizer.param_groups if other.get("name") == group_name(generation)
    )
    return next(named, group)


def join_(joining: Iterable[Joining], undo: Undo) -> None:
    """Adds new parameters to the ends of their groups, and keeps existing state."""
    items = list(joining)
    groups = {id(item.group): item.group for item in items}
    for key, group in groups.items():
        new = [Member(i.new.parameter, i.new.name, i.rates) for i in items if id(i.group) == key]
        set_members_(group, [*members_of(group), *new], undo)
    for item in items:
        _give_state(item, undo)


def _give_state(item: Joining, undo: Undo) -> None:
    state, parameter = item.optimizer.state, item.new.parameter
    for kind, first_state in _FIRST_STATES.items():
        if isinstance(item.optimizer, kind):
            first = first_state(item)
            if first:
                undo.on_failure(lambda: state.pop(parameter, None))
                state[parameter] = first


def _first_state_of_adagrad(item: Joining) -> dict[str, Any]:
    options = {name: item.group[name] for name in item.optimizer.defaults}
    return dict(Adagrad([item.new.parameter], **options).state[item.new.parameter])


def _first_state_of_sgd(item: Joining) -> dict[str, Any]:
    """A zero momentum where fused SGD needs one: all parameters of a group have one, or none."""
    state = item.optimizer.state
    begun = any(
        state[other].get("momentum_buffer") is not None
        for other in item.group["params"]
        if other in state
    )
    if item.group.get("fused") and begun:
        return {"momentum_buffer": torch.zeros_like(item.new.parameter.detach())}
    return {}


_FIRST_STATES: dict[type[Optimizer], Callable[[Joining], dict[str, Any]]] = {
    Adagrad: _first_state_of_adagrad,
    SGD: _first_state_of_sgd,
}
"""First states, for optimizers that do not make a parameter's state at its first step."""


@dataclass(frozen=True)
class ParameterPaths:
    """The parameters of a model, each with its path, at one time.

    Attributes:
        of: The path of each parameter, by its id; empty if no optimizer has names.
        known: All paths of each, also those from before its layer grew.
        kept: The parameters themselves, so that no other object gets one of these ids.
    """

    of: dict[int, str]
    known: dict[int, list[str]]
    kept: tuple[nn.Parameter, ...]

    @classmethod
    def now(cls, model: nn.Module, optimizers: Iterable[Optimizer]) -> ParameterPaths:
        """Those of a model as it is now, in the model's order, for optimizers that it tells."""
        if not any("param_names" in group for each in optimizers for group in each.param_groups):
            kept = (*all_parameters(model),)
            return cls(dict.fromkeys(map(id, kept), ""), {}, kept)
        named = list(model.named_parameters())
        known: dict[int, list[str]] = {}
        for path, parameter in named_by_all_paths(model).items():
            known.setdefault(id(parameter), []).append(path)
        return cls({id(p): name for name, p in named}, known, tuple(p for _, p in named))


def arrange_(
    optimizers: Iterable[Optimizer], before: ParameterPaths, model: nn.Module, undo: Undo
) -> None:
    """Puts the new parameters of groups where a new optimizer would list them.

    Torch saves and loads an optimizer's state by position. With the new parameters in the model's
    order, such a state fits an optimizer that is made of the grown model, as long as the same rule
    makes its groups. Old parameters keep their order. The names in ``param_names`` become the
    present paths, with the prefix that they had.

    Args:
        optimizers: The optimizers that the new parameters have joined.
        before: The model's parameters before.
        model: The model with the new ones.
        undo: Takes it back.
    """
    optimizers = list(optimizers)
    now = ParameterPaths.now(model, optimizers)
    order = {key: index for index, key in enumerate(now.of)}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            members = members_of(group)
            if "param_names" in group:
                members = _renamed(members, before, now)
            set_members_(group, _in_order(members, before, order), undo)


def _renamed(
    members: Iterable[Member], before: ParameterPaths, now: ParameterPaths
) -> list[Member]:
    """Parameters with their present paths, behind the prefix of a module around the model."""
    prefixes = {}
    for member in members:
        for path in before.known.get(id(member.parameter), ()):
            if f".{member.name}".endswith(f".{path}"):
                prefixes[id(member.parameter)] = member.name.removesuffix(path)
                break
    usual = next(iter(prefixes.values()), "")
    found = []
    for member in members:
        key = id(member.parameter)
        known = key in now.of and (key in prefixes or key not in before.of)
        name = prefixes.get(key, usual) + now.of[key] if known else member.name
        found.append(member._replace(name=name))
    return found


def _in_order(
    members: Iterable[Member], before: ParameterPaths, order: Mapping[int, int]
) -> list[Member]:
    """Parameters with each new one behind those of its group that precede it in the model."""
    listed_ = list(members)
    keyed = list(zip(map(id, [member.parameter for member in listed_]), listed_, strict=True))
    new = [entry for entry in keyed if entry[0] in order and entry[0] not in before.of]
    arrived = {key for key, _ in new}
    found = [entry for entry in keyed if entry[0] not in arrived]
    places = [order[key] if key in order else -1 for key, _ in found]  # noqa: SIM401 - faster
    rising = -1 not in places and places == sorted(places)  # as in an optimizer of the whole model
    for entry in sorted(new, key=lambda entry: order[entry[0]]):
        own = order[entry[0]]
        place = bisect_left(places, own) if rising else _place_for(own, places)
        found.insert(place, entry)
        places.insert(place, own)
    return [member for _, member in found]


def _place_for(own: int, places: Sequence[int]) -> int:
    """Where a number goes: behind the last one before it, or else in front of the next one.

    Args:
        own: The number.
        places: Numbers in any order; negative ones do not count.
    """
    known = [(number, place) for place, number in enumerate(places) if number >= 0]
    earlier = max([each for each in known if each[0] < own], default=None)
    later = min([each for each in known if each[0] > own], default=None)
    if earlier is not None:
        return earlier[1] + 1
    return later[1] if later is not None else len(places)


def leave_(optimizers: Iterable[Optimizer], gone: Iterable[nn.Parameter], undo: Undo) -> None:
    """Removes parameters from their groups, with their state."""
    leaving = {id(parameter): parameter for parameter in gone}
    for optimizer in optimizers:
        undo.keep(optimizer.state)
        for group in optimizer.param_groups:
            stays = [m for m in members_of(group) if id(m.parameter) not in leaving]
            set_members_(group, stays, undo)
        for parameter in leaving.values():
            optimizer.state.pop(parameter, None)
