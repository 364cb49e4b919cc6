"""Whether an optimizer's state_dict fits an optimizer, by the names of its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from splitgrow.errors import OptimizerError, SplitGrowWarning
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import plain_name
from splitgrow.utils.source_lines import levels_to_caller

NAMED = "by_name"
"""Where a state_dict has the names and the shapes of the parameters of each group."""
_NAMES = "param_names"
"""Where a group has torch's names, if the optimizer was made of named parameters."""

_AROUND = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""The names under which torch's wrappers hold a module: compile, FSDP, activation checkpoints."""

_SHAPED = frozenset(
    (
        "exp_avg",
        "exp_avg_sq",
        "max_exp_avg_sq",
        "exp_inf",
        "momentum_buffer",
        "square_avg",
        "grad_avg",
        "acc_delta",
        "sum",
        "prev",
        "step_size",
        "ax",
    )
)
"""The entries of torch's optimizers that have their parameter's shape."""


def _plain(name: str) -> str:
    """A path without the parts that wrappers of torch's add to it."""
    return ".".join(part for part in name.split(".") if part not in _AROUND)


def names_and_shapes(optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """The names and the shapes of an optimizer's parameters, by group, as plain data."""
    names = {id(p): _plain(name) for name, p in model.named_parameters()}
    groups = [group["params"] for group in optimizer.param_groups]
    return {
        "names": [[names.get(id(p)) for p in params] for params in groups],
        "shapes": [[list(p.shape) for p in params] for params in groups],
    }


def named_by_all_paths(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters by every path, those of grown layers also by their paths before growth."""
    named = {_plain(name): p for name, p in model.named_parameters(remove_duplicate=False)}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, SplitLayer):
            for name, parameter in module.original.named_parameters():
                named.setdefault(_plain(plain_name(module, path, name)), parameter)
    return named


@dataclass(frozen=True)
class SavedMember:
    """A parameter of a saved param group.

    Attributes:
        name: Its path in the model; None if it was not the model's.
        shape: Its shape, if that was saved.
    """

    name: str | None
    shape: tuple[int, ...] | None = None


def saved_groups(
    state_dict: Mapping[str, Any], named: Mapping[str, nn.Parameter]
) -> list[list[SavedMember]] | None:
    """The parameters of each group of a state_dict; None if it has no names.

    Args:
        state_dict: The state_dict.
        named: The model's parameters by their paths.

    Raises:
        OptimizerError: If it is no state_dict of an optimizer, or its parts contradict each other.
    """
    try:
        groups, own = state_dict["param_groups"], state_dict.get(NAMED)
        counts = [len(group["params"]) for group in groups]
        if own is not None:
            saved = [
                [SavedMember(*member) for member in zip(names, map(tuple, shapes), strict=True)]
                for names, shapes in zip(own["names"], own["shapes"], strict=True)
            ]
        elif groups and all(_NAMES in group for group in groups):
            saved = [_by_torchs_names(group[_NAMES], named) for group in groups]
        else:
            return None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise OptimizerError(f"this is no state_dict of an optimizer: {error!r}") from error
    if [len(members) for members in saved] != counts:
        raise OptimizerError("the state_dict names more or fewer parameters than its groups have")
    return saved


def _by_torchs_names(names: Iterable[str], named: Mapping[str, object]) -> list[SavedMember]:
    """Parameters by names that may have the prefix of a module around the model."""
    found = []
    for name in map(_plain, names):
        parts = name.split(".")
        endings = (".".join(parts[start:]) for start in range(len(parts)))
        found.append(SavedMember(next((e for e in endings if e in named), name)))
    return found


def matched(
    optimizer: Optimizer,
    saved: Sequence[Sequence[SavedMember]],
    named: Mapping[str, nn.Parameter],
) -> list[list[Tensor]]:
    """The parameters of each saved group.

    Args:
        optimizer: The optimizer that loads them.
        saved: The saved groups. Parameters that are not the model's are those of the optimizer's
            group of that number, in their order.
        named: The model's parameters by their paths.

    Raises:
        OptimizerError: If a parameter is not there or has another shape than was saved, or the
            optimizer trains more; all problems are named.
    """
    own = {id(parameter) for parameter in named.values()}
    problems: list[str] = []
    members: list[list[Tensor]] = []
    for number, group in enumerate(saved):
        before = (optimizer.param_groups[number:] or [{"params": []}])[0]["params"]
        foreign = iter([p for p in before if id(p) not in own])
        found = [
            (item, next(foreign, None) if item.name is None else named.get(item.name))
            for item in group
        ]
        problems.extend(_misfits(found, number))
        members.append([parameter for _, parameter in found if parameter is not None])
    problems.extend(_left_over(optimizer, members, named))
    if problems:
        raise OptimizerError(
            f"the state_dict does not fit this {type(optimizer).__name__} and its model: "
            f"{_some(problems)}. Load the model's state of the same moment first, "
            f"into a fresh model if this one has grown further"
        )
    return members


def _some(problems: Sequence[str]) -> str:
    """The first problems, and the number of the others."""
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return "; ".join(problems[:5]) + more


def _misfits(found: Iterable[tuple[SavedMember, Tensor | None]], number: int) -> Iterator[str]:
    for item, parameter in found:
        label = f"`{item.name}`" if item.name is not None else f"a parameter of group {number}"
        if parameter is None:
            yield f"{label} is in the state_dict, not in the model"
        elif item.shape not in (None, tuple(parameter.shape)):
            yield f"{label} has the shape {item.shape} there, {tuple(parameter.shape)} here"


def _left_over(
    optimizer: Optimizer, members: Iterable[Iterable[Tensor]], named: Mapping[str, nn.Parameter]
) -> Iterator[str]:
    kept = {id(parameter) for parameter in chain.from_iterable(members)}
    paths = _paths(named)
    for parameter in parameters_of(optimizer):
        if id(parameter) not in kept:
            path = paths.get(id(parameter))
            label = f"`{path}`" if path is not None else "a parameter that is not the model's"
            yield f"the optimizer trains {label}, which the saved one did not"


def _paths(named: Mapping[str, Tensor]) -> dict[int, str]:
    """The first path of each parameter, by its id."""
    paths: dict[int, str] = {}
    for name, parameter in named.items():
        paths.setdefault(id(parameter), name)
    return paths


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of all groups of an optimizer."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def regroup_(
    optimizer: Optimizer, members: Sequence[list[Tensor]], named: Mapping[str, nn.Parameter]
) -> None:
    """Gives an optimizer groups of these members; a state_dict is to bring their options."""
    groups = optimizer.param_groups
    paths = _paths(named)
    has_names = any(_NAMES in group for group in groups)
    for number, chosen in enumerate(members):
        if number == len(groups):
            groups.append({**optimizer.defaults})
        groups[number]["params"] = list(chosen)
        if has_names:
            groups[number][_NAMES] = [paths.get(id(p), "") for p in chosen]
    del groups[len(members) :]


def check_positions(
    optimizer: Optimizer, state_dict: Mapping[str, Any], named: Mapping[str, nn.Parameter]
) -> None:
    """Makes sure that a state_dict without names can be meant for an optimizer.

    Raises:
        OptimizerError: If its numbers of groups and parameters, or its shapes, are others.
    """
    there = [len(group["params"]) for group in state_dict["param_groups"]]
    here = [len(group["params"]) for group in optimizer.param_groups]
    if there != here:
        raise OptimizerError(
            f"the state_dict has no names, and {there} parameters in its groups, this "
            f"{type(optimizer).__name__} {here}; save it by splitgrow.by_name"
        )
    numbers = chain.from_iterable(group["params"] for group in state_dict["param_groups"])
    states = {
        id(parameter): state_dict["state"].get(number) or {}
        for number, parameter in zip(numbers, parameters_of(optimizer), strict=True)
    }
    check_shapes(optimizer, states, named)
    warnings.warn(
        "the state_dict of the optimizer has no names, so its parameters are matched by position; "
        "save it by splitgrow.by_name",
        SplitGrowWarning,
        stacklevel=levels_to_caller(),
    )


def check_shapes(
    optimizer: Optimizer, states: Mapping[int, Mapping[str, Any]], named: Mapping[str, Tensor]
) -> None:
    """Makes sure that states of one of torch's optimizers have the shapes of their parameters.

    Torch does not compare them when it loads a state_dict; its fused kernels then read beyond the
    end. Other optimizers may keep states of other shapes.

    Args:
        optimizer: The optimizer.
        states: The state of each of its parameters, by the parameter's id.
        named: The model's parameters by their paths.

    Raises:
        OptimizerError: If one has not; all are named.
    """
    if not type(optimizer).step.__module__.startswith("torch.optim."):
        return
    paths = _paths(named)
    problems = []
    for parameter in parameters_of(optimizer):
        for key, value in states.get(id(parameter), {}).items():
            shaped = key in _SHAPED and isinstance(value, Tensor) and value.dim() > 0
            if shaped and value.shape != parameter.shape:
                name = paths.get(id(parameter), "a parameter")
                problems.append(
                    f"`{name}` has the shape {tuple(parameter.shape)}, its `{key}` "
                    f"{tuple(value.shape)}"
                )
    if problems:
        raise OptimizerError(
            f"the state of this {type(optimizer).__name__} is that of other parameters: "
            f"{_some(problems)}. It was loaded by position, from an optimizer that "
            f"listed them in another order; use splitgrow.by_name(optimizer, model) before saving "
            f"and before loading"
        )
