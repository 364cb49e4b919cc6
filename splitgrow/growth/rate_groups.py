"""Param groups for parameters with rates of their own, which there are only while a step runs.

Between steps such parameters are members of the group that they joined. So schedulers, trainers and
checkpoints by position find the groups that they know, whatever they keep for each. When torch's
hooks say that a step begins, the parameters go to a group of their own, with all the options of
theirs and another rate; when it ends, they come back.

Considered: groups that stay. Every scheduler keeps lists with an entry for each group, each under
names of its own; and an optimizer that is made of the grown model anew has other groups.
"""

from __future__ import annotations

import copy
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from splitgrow.growth.rates import AS_THE_GROUP, RATES, Rates, rates_as_data, rates_in

_hooks: list[RemovableHandle] = []
"""The hook on all optimizers' steps, once it is there."""

_MEMBERS = ("params", "param_names")
"""The lists of a group that have an item for each parameter, as torch knows them."""


def follow_rates_() -> None:
    """Has each optimizer of this process keep to the rates in its groups, however it got them."""
    if _hooks:
        return
    begin: Any = torch.compiler.disable
    begin = begin(_begin)

    def before_step(optimizer: Optimizer, *_: Any) -> None:  # others pay for this look
        for group in optimizer.param_groups:
            if RATES in group:
                begin(optimizer)
                return

    _hooks.append(register_optimizer_step_pre_hook(before_step))


_known: WeakKeyDictionary[Optimizer, _Parted] = WeakKeyDictionary()


def _begin(optimizer: Optimizer) -> None:
    if optimizer not in _known:
        _known[optimizer] = _Parted(optimizer)
    _known[optimizer].keep_innermost()


def whole_(optimizer: Optimizer) -> None:
    """Ends the parting of a step that was left by an exception."""
    if optimizer in _known:
        _known[optimizer].unite_(optimizer)


class _Parted:
    """The groups of one optimizer while it steps.

    Attributes:
        kept: The groups that have lent parameters, each with the items to give back to it.
        made: The groups that these parameters are in.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self.made: list[dict[str, Any]] = []
        self._rates: list[Tensor] = []
        outside: Any = torch.compiler.disable
        self._handles = (
            optimizer.register_step_pre_hook(outside(self._before)),
            optimizer.register_step_post_hook(outside(self._after)),
        )
        optimizer.register_state_dict_pre_hook(self.unite_)

    def keep_innermost(self) -> None:
        """Puts the hooks next to the step, so that all others find the groups that they know."""
        for handle, last in zip(self._handles, (True, False), strict=True):
            hooks: Any = handle.hooks_dict_ref()
            hooks.move_to_end(handle.id, last=last)

    def _before(self, optimizer: Optimizer, args: Any, kwargs: Any) -> tuple[Any, Any]:
        self.unite_(optimizer)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")

        def whole(*given: Any, **named: Any) -> Any:  # trainers run their whole step in it
            self.unite_(optimizer)
            made = closure(*given, **named)
            self._part_(optimizer)
            return made

        if callable(closure) and len(args) > 1:
            args = (args[0], whole, *args[2:])
        elif callable(closure):
            kwargs = {**kwargs, "closure": whole}
        self._part_(optimizer)
        held = _OfTheStep(kwargs)  # its end is that of the step, also of one that raises
        finalize(held, self._unite_those, optimizer, self.kept)
        return args, held

    def _after(self, optimizer: Optimizer, *_: Any) -> None:
        stepped = bool(self.kept)
        self.unite_(optimizer)
        if stepped:
            _count_step_(optimizer)

    def _part_(self, optimizer: Optimizer) -> None:
        """Puts parameters with rates of their own into groups of their own."""
        groups = optimizer.param_groups
        found = [(group, rates_in(group)) for group in groups if RATES in group]
        for group, rates in found:
            members = {key: group[key] for key in _MEMBERS if key in group}
            self.kept.append((group, {**members, RATES: group[RATES]}))
            del group[RATES]
            parts: dict[Rates, list[int]] = {AS_THE_GROUP: []}
            for index, rate in enumerate(rates):
                parts.setdefault(rate if rate.own else AS_THE_GROUP, []).append(index)
            for rate, places in parts.items():
                chosen = {key: [items[n] for n in places] for key, items in members.items()}
                if rate is AS_THE_GROUP:
                    group.update(chosen)
                else:
                    made = {key: _apart(item) for key, item in group.items() if key not in _MEMBERS}
                    made["lr"] = self._scaled(group["lr"], rate.factor)
                    self.made.append({**chosen, **made})
        groups.extend(self.made)

    def _scaled(self, rate: Any, factor: float) -> Any:
        """A rate times a factor; of a tensor, in a tensor that compiled code finds again."""
        with torch.no_grad():
            scaled = rate * factor
            if not isinstance(scaled, Tensor):
                return scaled
            number = len(self.made)
            like = self._rates[number : number + 1]
            if like and (like[0].dtype, like[0].device) == (scaled.dtype, scaled.device):
                return like[0].copy_(scaled)
        self._rates[number:] = [scaled]
        return scaled

    def unite_(self, optimizer: Optimizer) -> None:
        """Gives the groups their parameters back; does nothing where they have them."""
        made = {id(group) for group in self.made}
        groups = optimizer.param_groups
        groups[:] = [group for group in groups if id(group) not in made]
        for group, items in self.kept:
            group.update(items)
        self.kept, self.made = [], []

    def _unite_those(self, optimizer: Optimizer, kept: object) -> None:
        if self.kept is kept:
            self.unite_(optimizer)


class _OfTheStep(dict[str, Any]):
    """The named arguments of a step."""


def _apart(option: Any) -> Any:
    """An option of a group for another group, so that what is written to one is not to both."""
    if isinstance(option, Tensor):
        return option.detach().clone()
    return copy.deepcopy(option) if isinstance(option, (dict, list, set)) else option


def _count_step_(optimizer: Optimizer) -> None:
    """Counts a step of warm-ups, unless the gradients were not finite and it was none."""
    rated = [(group, rates_in(group)) for group in optimizer.param_groups if RATES in group]
    rising = [(group, rates) for group, rates in rated if any(r.steps < r.warmup for r in rates)]
    if not rising or _skipped(optimizer):
        return
    for group, rates in rising:
        data = rates_as_data([rate.after_step() for rate in rates])
        if data is None:
            del group[RATES]
        else:
            group[RATES] = data


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a GradScaler has told a fused step to do nothing."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.item())
