"""Replacing several parameters by one in the optimizers that train them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from splitgrow.errors import OptimizerError
from splitgrow.growth.group_members import Member, members_of, set_members_
from splitgrow.growth.state_scales import scaled_state
from splitgrow.utils.rollback import Undo


@dataclass(frozen=True)
class JointParameter:
    """A parameter that replaces several.

    Attributes:
        name: Its path in the model.
        parameter: The parameter.
        older: The parameters that it replaces.
        fill: Assembles tensors of the older parameters' shapes to one of its shape; takes None for
            zeros.
        gains: The factors of the older ones' values in the new one's; none where they are all 1.
        other_state: Makes of an optimizer's tensor of another shape, by its name, that of the new
            parameter; None for one that it does not know. No such tensor is known without it.
    """

    name: str
    parameter: nn.Parameter
    older: tuple[nn.Parameter, ...]
    fill: Callable[[Sequence[Tensor | None]], Tensor]
    gains: tuple[float, ...] = ()
    other_state: Callable[[str, Tensor], Tensor | None] = lambda _name, _tensor: None


@dataclass(frozen=True)
class Replacing:
    """A joint parameter, the param group that it enters, and its state there."""

    optimizer: Optimizer
    group: dict[str, Any]
    joint: JointParameter
    state: dict[str, Any]


def plan_replacing(
    optimizers: list[Optimizer], joints: Iterable[JointParameter]
) -> list[Replacing]:
    """The groups that joint parameters enter, and their states there.

    The state is that of a parameter that was there from the start and got no gradient for missing
    parts: tensors are assembled like the parameters themselves, with zeros for those that have no
    state yet, and numbers, such as a count of steps, come from the parameter with the most steps.

    Raises:
        OptimizerError: If parameters to join are in different groups, or only some are in a group,
            or their state has other shapes than they have; all of them are named.
    """
    replacing = []
    problems: dict[str, list[str]] = {}
    for optimizer in optimizers:
        groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
        rates = {id(m.parameter): m.rates for g in optimizer.param_groups for m in members_of(g)}
        for joint in joints:
            homes = [groups.get(id(parameter)) for parameter in joint.older]
            home, states = homes[0], [optimizer.state.get(p) or {} for p in joint.older]
            if any(other is not home for other in homes):
                problems.setdefault("has parts in different param groups", []).append(joint.name)
            elif home is None:
                continue
            elif len({rates[id(part)] for part in joint.older}) > 1:
                problems.setdefault(_OTHER_RATES, []).append(joint.name)
            elif any(_lies_otherwise(joint, *p) for p in zip(states, joint.older, strict=True)):
                problems.setdefault("has state of other shapes than its own", []).append(joint.name)
            else:
                state = _joined(optimizer, joint, states)
                replacing.append(Replacing(optimizer, home, joint, state))
    if problems:
        found = "; ".join(f"{_some(names)} {why}" for why, names in problems.items())
        raise OptimizerError(
            f"{found}. Call this without `optimizer=`, and make a new optimizer afterwards"
        )
    return replacing


_OTHER_RATES = (
    "has parts of different learning rates, which end with their warm-ups, or with the item "
    "'splitgrow_rates' of the param group if you delete that"
)


def _some(names: Sequence[str]) -> str:
    more = f" (and {len(names) - 5} more)" if len(names) > 5 else ""
    return f"each of {', '.join(names[:5])}{more}" if len(names) > 1 else names[0]


def _lies_otherwise(joint: JointParameter, state: dict[str, Any], parameter: nn.Parameter) -> bool:
    return any(
        value.dim() and value.shape != parameter.shape and joint.other_state(name, value) is None
        for name, value in state.items()
        if isinstance(value, Tensor)
    )


def _joined(
    optimizer: Optimizer, joint: JointParameter, states: list[dict[str, Any]]
) -> dict[str, Any]:
    begun = [state for state in states if state]
    if not begun:
        return {}
    longest = max(begun, key=lambda state: float(state.get("step", 0)))
    found: dict[str, Any] = {}
    for name in dict.fromkeys(name for state in (longest, *begun) for name in state):
        values = [state.get(name) for state in states]
        if any(_lies_as(*pair) for pair in zip(values, joint.older, strict=True)):
            parts = scaled_state(optimizer, name, values, joint.gains) if joint.gains else values
            found[name] = joint.fill(parts)
        elif isinstance(longest.get(name), Tensor) and longest[name].dim():
            found[name] = joint.other_state(name, longest[name])
        elif name in longest:
            value = longest[name]
            found[name] = value.clone() if isinstance(value, Tensor) else copy.copy(value)
    return found


def _lies_as(value: object, parameter: nn.Parameter) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape


def replace_(replacing: Iterable[Replacing], undo: Undo) -> None:
    """Puts joint parameters in the places of the older ones."""
    states: dict[int, dict[Any, Any]] = {}
    groups: dict[int, dict[str, Any]] = {}
    joints: dict[int, dict[int, list[JointParameter]]] = {}
    for item in replacing:
        state = item.optimizer.state
        if id(state) not in states:
            states[id(state)] = state
            undo.keep(state)
        for parameter in item.joint.older:
            state.pop(parameter, None)
            own = joints.setdefault(id(item.group), {})
            own.setdefault(id(parameter), []).append(item.joint)
        if item.state:
            state[item.joint.parameter] = item.state
        groups[id(item.group)] = item.group
    for key, group in groups.items():
        _replace_in_group(group, joints[key], undo)


def _replace_in_group(
    group: dict[str, Any], joints: dict[int, list[JointParameter]], undo: Undo
) -> None:
    entered: dict[int, Member] = {}
    for member in members_of(group):
        places = joints.get(id(member.parameter))
        if places is None:
            entered[id(member.parameter)] = member
        for joint in places or ():
            entered[id(joint.parameter)] = Member(joint.parameter, joint.name, member.rates)
    set_members_(group, entered.values(), undo)
