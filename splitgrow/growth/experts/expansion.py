"""Giving the mixtures of a model further experts: planned, then applied."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence

from torch import nn
from torch.optim import Optimizer

from splitgrow.errors import SplitGrowWarning
from splitgrow.growth.apply import close_generation_, new_block_parameters
from splitgrow.growth.edit_check import before_edit
from splitgrow.growth.edit_parts import Insertion
from splitgrow.growth.edits import Edit
from splitgrow.growth.experts.copies import further_experts, sets_around, tell_apart_
from splitgrow.growth.experts.expert_plans import MixtureGrowth, planned_experts
from splitgrow.growth.experts.mixtures import Mixture, capture
from splitgrow.growth.history import (
    History,
    keep_,
    note_grown_tensors_,
    structure,
)
from splitgrow.growth.initializers import Zero, initialise_
from splitgrow.growth.insertion.insertion import analysed_anew, tell_wrappers_
from splitgrow.growth.insertion.placing import wrap_
from splitgrow.growth.insertion.request import EXPERTS
from splitgrow.growth.optimizers import NewParameter, join_, plan_joining
from splitgrow.growth.placing import widen_
from splitgrow.growth.prepared import prepare
from splitgrow.growth.rates import Rates
from splitgrow.layers.expert_sets import ExpertSet
from splitgrow.layers.split_layer import stock
from splitgrow.layers.tensor_holder import SplitTensor, blocks_path
from splitgrow.utils.rollback import Undo
from splitgrow.utils.source_lines import levels_to_caller

_Made = tuple[Insertion, nn.Module, nn.Module]
"""An insertion, the module with the experts that were there first, and that of the new ones."""


def expand_experts_(  # noqa: PLR0913
    undo: Undo,
    model: nn.Module,
    history: History,
    n: int,
    *,
    mixture: str | None,
    noise: float,
    freeze: bool,
    optimizer: list[Optimizer],
    rates: Rates,
    check: bool,
) -> Edit:
    """Adds experts to mixtures: plans the edit, then applies it.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If there is no such mixture, or n is no multiple of its experts.
        UnsupportedLayerError: If a mixture cannot grow.
    """
    _check_noise(noise)
    edit, growths = planned_experts(model, history, n, mixture, freeze=freeze)
    before = before_edit(model, history, check=check)
    prepared = prepare(model, history.modules, edit, history.graph)
    initialise_(Zero(), prepared, undo)
    new = list(new_block_parameters(prepared.layers.values()))
    made: list[_Made] = []
    for insertion in edit.inserted:
        host = history.modules[insertion.host]
        module, originals = further_experts(model, host, insertion.recipe)
        made.append((insertion, host, module))
        new += _new_parameters(insertion, module, originals)
    joining = plan_joining(optimizer, new, edit.generation, rates)
    keep_(history, undo)
    if edit.closes is not None:
        close_generation_(model, history, undo)
    if noise:
        _tell_apart_(model, history, growths, made, noise, undo)
    widen_(prepared, history.modules, undo)
    note_grown_tensors_(history, edit)
    for insertion, host, module in made:
        wrap_(model, host, module, (edit.index, insertion), undo)
    join_(joining, undo)
    hosts = ", ".join(insertion.host for insertion in edit.inserted)
    history.graph, asked, _ = analysed_anew(model, history, hosts)
    tell_wrappers_(model, asked, undo)
    history.modules = structure(model)
    history.generation = edit.generation
    history.edits = [*history.edits, edit]
    if before is not None:
        before.check(model, history)
    return edit


def _tell_apart_(
    model: nn.Module,
    history: History,
    growths: Sequence[MixtureGrowth],
    made: Sequence[_Made],
    noise: float,
    undo: Undo,
) -> None:
    """Has twins that train start apart; those of closed generations are frozen by now."""
    known = [_callable(growth.mixture, history) for growth in growths]
    calls = capture(model, history.inputs, [path for paths in known for path in paths])
    for paths, (insertion, host, module) in zip(known, made, strict=True):
        call = next((calls[path] for path in paths if path in calls), None)
        experts = ExpertSet.read(insertion.recipe[EXPERTS])
        old = sets_around(model, host)[1]
        if call is None or not tell_apart_(module, old, experts, noise, call, undo):
            warnings.warn(
                f"experts of `{insertion.host}` and their copies get the same gradients, since no "
                f"tensor was found in which an expert's output is linear, to make them differ",
                SplitGrowWarning,
                stacklevel=levels_to_caller(),
            )


def _callable(mixture: Mixture, history: History) -> list[str]:
    """The path of the experts' module, or those of the ones of a list."""
    if mixture.index is not None:
        return [mixture.experts]
    listed = history.modules[mixture.experts]
    return [f"{mixture.experts}.{name}" for name, _ in listed.named_children()]


def _new_parameters(
    insertion: Insertion, module: nn.Module, originals: Mapping[int, nn.Module]
) -> Iterator[NewParameter]:
    """The parameters of further experts, which join the groups of those that they are copies of."""
    for path, part in module.named_modules():
        original = originals.get(id(part))
        for name, parameter in part.named_parameters(recurse=False):
            full = ".".join(each for each in (insertion.name, path, name) if each)
            yield NewParameter(full, parameter, _older(original, name))


def _older(original: nn.Module | None, name: str) -> tuple[nn.Parameter, ...]:
    if original is None:
        return ()
    layer = stock(original)
    split = original._modules.get(blocks_path(name))  # noqa: SLF001
    if isinstance(split, SplitTensor):
        layer, name = split.original, "value"
    known = layer._parameters.get(name)  # noqa: SLF001
    return () if known is None else (known,)


def _check_noise(noise: object) -> None:
    if isinstance(noise, bool) or not isinstance(noise, (int, float)):
        raise TypeError(f"noise must be a number, got {noise!r}")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise (={noise}) must not be negative")
