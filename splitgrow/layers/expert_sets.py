"""The experts of a mixture that has grown: those that it had, and the sets that edits added.

A mixture of experts chooses some experts for each token. Its experts lie in one module that is
called with the indices and weights of the chosen ones, and whose tensors have an entry for each
expert; or they are the modules of a list. In the first case each set is such a module. It is given
the indices that it has, counted from its own first expert, and the results are added. In the second
case the sets are lists that follow each other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.layers.tensor_holder import make_plain_

Argument = tuple[int, str]
"""An argument of a call: its position, and its name."""

_SKIPS = "_is_expert_parallel"
"""An attribute by which modules of transformers skip the index one behind their last expert, as
they do where each process has some of the experts."""


@dataclass(frozen=True, slots=True)
class ExpertSet:
    """The experts that an edit adds to a mixture.

    Attributes:
        first: The number of experts before them.
        count: Their number.
        index: The argument of the module's call that has the indices of the chosen experts; None
            if the experts are the modules of a list.
        weights: The argument that has their weights.
        tensors: The names of the module's tensors that have an entry for each expert.
        numbers: The names of its attributes that count the experts.
    """

    first: int
    count: int
    index: Argument | None = None
    weights: Argument | None = None
    tensors: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()

    @property
    def listed(self) -> bool:
        """Whether the experts are the modules of a list."""
        return self.index is None

    def written(self) -> dict[str, Any]:
        """The set as plain data."""
        return asdict(self)

    @classmethod
    def read(cls, data: Any) -> ExpertSet:
        """A set from its plain data.

        Raises:
            ValueError: If it is none.
        """
        try:
            made = cls(**dict(data))
            sizes = type(made.first) is int and type(made.count) is int
            fits = sizes and made.first > 0 and made.count > 0
            for argument in (made.index, made.weights):
                fits = fits and (argument is None or _is_argument(argument))
            for names in (made.tensors, made.numbers):
                fits = fits and type(names) is tuple and all(type(n) is str for n in names)
        except (TypeError, ValueError):
            raise ValueError("it has no valid set of experts") from None
        if not fits or (made.index is None) != (made.weights is None):
            raise ValueError("it has no valid set of experts")
        return made


def _is_argument(value: Any) -> bool:
    return type(value) is tuple and [type(item) for item in value] == [int, str] and value[0] >= 0


def let_skip_(module: nn.Module) -> None:
    """Has a module pass over the index one behind its last expert, if it can."""
    for part in module.modules():
        if _SKIPS in vars(part):
            vars(part)[_SKIPS] = True


def argument_of(args: Sequence[Any], kwargs: Mapping[str, Any], which: Argument) -> Any:
    """An argument of a call, which may have it by position or by name."""
    position, name = which
    return args[position] if position < len(args) else kwargs[name]


def _with_argument(
    args: tuple[Any, ...], kwargs: dict[str, Any], which: Argument, value: Any
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    position, name = which
    if position < len(args):
        return (*args[:position], value, *args[position + 1 :]), kwargs
    return args, {**kwargs, name: value}


def run_set(
    module: nn.Module,
    places: tuple[int, int],
    experts: ExpertSet,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """The result of the experts of one module; those of others count as zero.

    Args:
        module: The module.
        places: The number of experts before its first one, and of its own.
        experts: A set of the mixture, which tells where a call has indices and weights.
        args: The arguments of the call for all experts.
        kwargs: Its named arguments.
    """
    assert experts.index is not None
    assert experts.weights is not None
    first, count = places
    index: Tensor = argument_of(args, kwargs, experts.index)
    weights: Tensor = argument_of(args, kwargs, experts.weights)
    own = (index >= first) & (index < first + count)
    other = count if vars(module).get(_SKIPS) else 0
    shifted = torch.where(own, index - first, torch.full_like(index, other))
    args, kwargs = _with_argument(args, kwargs, experts.index, shifted)
    args, kwargs = _with_argument(args, kwargs, experts.weights, weights.masked_fill(~own, 0))
    return module(*args, **kwargs)


def names_of_experts(container: nn.Module, further: int) -> list[str]:
    """The names of further entries of a list or dict of experts, counted on from its last one.

    Raises:
        ValueError: If its names are not counted.
    """
    last = list(container._modules)[-1]  # noqa: SLF001
    digits = last[len(last.rstrip("0123456789")) :]
    if not digits:
        raise ValueError(f"the names of the experts end in no number: {last!r}")
    stem, number = last[: -len(digits)], int(digits)
    return [f"{stem}{number + n}" for n in range(1, further + 1)]


def all_listed(containers: Sequence[nn.Module]) -> dict[str, nn.Module]:
    """The experts of several lists by the names that they have in one."""
    first, *others = containers
    found = dict(first.named_children())
    experts = [part for container in others for part in container.children()]
    return {**found, **dict(zip(names_of_experts(first, len(experts)), experts, strict=True))}


def join_sets_(module: nn.Module, sets: Sequence[tuple[ExpertSet, nn.Module]]) -> None:
    """Gives a plain module the experts of further ones, which nobody else holds.

    Args:
        module: The module that was there first. It is changed.
        sets: The further sets, each with its module, in order.
    """
    parts = [part for _, part in sets]
    for each in (module, *parts):
        make_plain_(each)
    if sets[0][0].listed:
        joined = all_listed([module, *parts])
        module._modules.update(joined)  # noqa: SLF001
        return
    for name in sets[0][0].tensors:
        tensors = [entry_tensor(each, name) for each in (module, *parts)]
        with torch.no_grad():
            value: Tensor = torch.cat(tensors)
        trains = any(tensor.requires_grad for tensor in tensors)
        set_entry_tensor_(module, name, value, trains=trains)
    for name in sets[0][0].numbers:
        path, _, key = name.rpartition(".")
        vars(module.get_submodule(path))[key] += sum(one.count for one, _ in sets)
    for each in module.modules():
        if _SKIPS in vars(each):
            vars(each)[_SKIPS] = False


def repeat_experts_(
    module: nn.Module, tensors: Sequence[str], numbers: Sequence[str], times: int
) -> None:
    """Has a plain module hold each of its experts several times, one after the other.

    Args:
        module: The module; a list if no tensors are named.
        tensors: The names of its tensors that have an entry for each expert.
        numbers: The names of its attributes that count them.
        times: How many times.
    """
    for name in tensors:
        tensor = entry_tensor(module, name)
        with torch.no_grad():
            value = torch.cat([tensor.detach()] * times)
        set_entry_tensor_(module, name, value, trains=tensor.requires_grad)
    for name in numbers:
        path, _, key = name.rpartition(".")
        vars(module.get_submodule(path))[key] *= times


def add_listed_(experts: nn.Module, times: int) -> None:
    """Adds copies of all modules of a list to it, several times.

    Raises:
        ValueError: If the names of its entries are not counted.
    """
    known = list(experts.children())
    names = names_of_experts(experts, times * len(known))
    for name, module in zip(names, known * times, strict=True):
        experts.add_module(name, copy.deepcopy(module))


def entry_tensor(module: nn.Module, name: str) -> Tensor:
    """A module's parameter or buffer, by its name."""
    path, _, key = name.rpartition(".")
    tensor: Tensor = getattr(module.get_submodule(path), key)
    return tensor


def set_entry_tensor_(module: nn.Module, name: str, value: Tensor, *, trains: bool) -> None:
    """Gives a plain module another tensor in the place of one of its own."""
    path, _, key = name.rpartition(".")
    holder = module.get_submodule(path)
    if key in holder._parameters:  # noqa: SLF001
        holder._parameters[key] = nn.Parameter(value, requires_grad=trains)  # noqa: SLF001
    else:
        holder._buffers[key] = value  # noqa: SLF001


def tensors_of_experts(module: nn.Module, count: int) -> list[str]:
    """The names of a module's tensors that have an entry for each of so many experts."""
    named = chain(module.named_parameters(), module.named_buffers())
    return [name for name, t in named if t.dim() > 1 and t.shape[0] == count]


def counts_of_experts(module: nn.Module, count: int) -> Iterator[str]:
    """The names of a module's attributes that may count so many experts."""
    for path, part in module.named_modules():
        for name, value in vars(part).items():
            if type(value) is int and value == count and not name.startswith("_"):
                yield f"{path}.{name}".removeprefix(".")
