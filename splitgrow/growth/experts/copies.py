"""Further experts for a mixture: copies of those that it has, which differ so that they can learn.

Copies of an expert get the same gradients as long as they are chosen together with the same weight.
So twins that train start apart: by values that add up to zero, in a tensor in which the result is
linear, so that it stays the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils import _pytree as pytree

from splitgrow.errors import CheckpointError
from splitgrow.growth.experts.mixtures import ModuleCall
from splitgrow.growth.insertion.block_copies import let_learn_
from splitgrow.growth.insertion.recipes import copied_without_values
from splitgrow.growth.insertion.request import EXPERTS
from splitgrow.layers.expert_sets import (
    ExpertSet,
    add_listed_,
    entry_tensor,
    let_skip_,
    repeat_experts_,
)
from splitgrow.layers.hooks import STORES
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.layers.plain_copy import plain_copy
from splitgrow.utils.rollback import Undo

_LINEAR = 1e-4
"""The largest deviation, relative to the change, of a result that is linear in a tensor."""


def sets_around(model: nn.Module, host: nn.Module) -> tuple[nn.Module, list[nn.Module]]:
    """The wrapper around a module of experts, or the module, and all modules that have experts."""
    for each in model.modules():
        if isinstance(each, InsertionWrapper) and each.wrapped is host and each.sets(None):
            return each, [host, *(module for _, module in each.sets(None))]
    return host, [host]


def further_experts(
    model: nn.Module, host: nn.Module, recipe: Mapping[str, Any], *, empty: bool = False
) -> tuple[nn.Module, dict[int, nn.Module]]:
    """Copies of the experts of a mixture, as one module.

    Args:
        model: The model.
        host: The module that has the experts that were there first.
        recipe: The recipe of the insertion.
        empty: Whether the copies have no values.

    Returns:
        The module, and for each part of it, by its id, the module that it is a copy of.

    Raises:
        CheckpointError: If the recipe does not fit the module.
    """
    experts = ExpertSet.read(recipe[EXPERTS])
    around, modules = sets_around(model, host)
    made = copied_without_values(around) if empty else plain_copy(around, None, {})
    for store in STORES:
        vars(made)[store].clear()  # they go on seeing all experts
    times, rest = divmod(experts.count, experts.first)
    if rest or not times:
        raise CheckpointError(f"{experts.count} experts are no copies of {experts.first}")
    if experts.listed:
        originals = [expert for module in modules for expert in module.children()]
        if len(originals) != experts.first:
            raise CheckpointError(f"it copies {experts.first} experts, and there are others")
        add_listed_(made, times - 1)
        pairs = [
            (part, original)
            for n, copied in enumerate(made.children())
            for part, original in _pairs(copied, originals[n % experts.first])
        ]
    else:
        repeat_experts_(made, experts.tensors, experts.numbers, times)
        pairs = _pairs(made, host)
    let_learn_(made)
    let_skip_(made)
    return made, {id(part): original for part, original in pairs}


def _pairs(copied: nn.Module, original: nn.Module) -> list[tuple[nn.Module, nn.Module]]:
    known = dict(original.named_modules())
    return [(part, known[name]) for name, part in copied.named_modules() if name in known]


def tell_apart_(
    new: nn.Module,
    old: Sequence[nn.Module],
    experts: ExpertSet,
    noise: float,
    call: ModuleCall,
    undo: Undo,
) -> bool:
    """Has twins that train start apart, so that the mixture computes the same.

    Args:
        new: The new experts.
        old: The modules with the experts that they are copies of.
        experts: The set of new experts.
        noise: The size of the differences, relative to the deviation of a tensor's values.
        call: A call of the experts, or of one of a list.
        undo: Restores the values of old experts.

    Returns:
        Whether there was a tensor for that, or it was not needed.
    """
    first, times = experts.first, experts.count // experts.first
    if times == 1 and not any(map(_that_train, old)):
        return True
    if experts.listed:
        copies = list(new.children())
        names = _linear_in(copies[0], [name for name, _ in copies[0].named_parameters()], call)
        originals = [expert for module in old for expert in module.children()]
        for n, original in enumerate(originals):
            twins = [*_that_train(original), *copies[n::first]]
            for name in names:
                _set_apart_([_Slot(each, name) for each in twins], noise, undo)
        return bool(names)
    names = _linear_in(new, experts.tensors, call)
    start = 0
    for module in old:
        count = len(entry_tensor(module, experts.tensors[0]))
        rows = [slice(start + n * first, start + n * first + count) for n in range(times)]
        for name in names:
            own = [_Slot(each, name) for each in _that_train(module)]
            _set_apart_([*own, *(_Slot(new, name, each) for each in rows)], noise, undo)
        start += count
    return bool(names)


def _that_train(module: nn.Module) -> list[nn.Module]:
    return [module] if all(p.requires_grad for p in module.parameters()) else []


class _Slot(NamedTuple):
    """The entries of a module's tensor for some experts: all, or those of some rows."""

    module: nn.Module
    name: str
    rows: slice | None = None

    def tensor(self) -> Tensor:
        """The entries."""
        whole = entry_tensor(self.module, self.name)
        return whole if self.rows is None else whole[self.rows]

    @torch.no_grad()
    def set_(self, value: Tensor) -> None:
        """Sets the entries."""
        self.tensor().copy_(value)


def _set_apart_(twins: Sequence[_Slot], noise: float, undo: Undo) -> None:
    """Moves the tensors of twins by random values that add up to zero."""
    if len(twins) < 2:
        return
    values = [slot.tensor().detach().clone() for slot in twins]
    # The same in every process that trains the model, of which each has the old experts.
    generator = torch.Generator(values[0].device).manual_seed(values[0].numel())
    drawn = [torch.empty_like(v).normal_(generator=generator) for v in values]
    mean = torch.stack(drawn).mean(0)
    size = noise * values[0].float().std().item()
    for slot, value, change in zip(twins, values, drawn, strict=True):
        undo.on_failure(partial(slot.set_, value))
        slot.set_(value + size * (change - mean))


@torch.no_grad()
def _linear_in(module: nn.Module, names: Sequence[str], call: ModuleCall) -> list[str]:
    """The tensors of a module in which its result is linear, the others held."""
    args, kwargs = call.args, call.kwargs

    def result(changes: Mapping[str, Tensor]) -> Tensor:
        given = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
        made: Tensor = functional_call(module, dict(changes), *given)
        return made

    try:
        base = result({})
    except Exception:  # noqa: BLE001 - then nothing is known to be linear
        return []
    found = []
    parameters = dict(module.named_parameters())
    for name in names:
        tensor = parameters.get(name)
        if tensor is None:
            continue
        change = torch.randn_like(tensor) * tensor.float().std().item()
        more, less = result({name: tensor + change}), result({name: tensor - change})
        moved = (more - base).abs().max().item()
        if moved and (more + less - 2 * base).abs().max().item() <= _LINEAR * moved:
            found.append(name)
    return found
