"""Criteria that look at the values that layers read of each unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from splitgrow.growth.input_moments import Moments, input_moments
from splitgrow.layers.tensor_holder import split_of
from splitgrow.layers.types import known_layer_type
from splitgrow.pruning.criteria.criterion import Criterion, UnitsInView
from splitgrow.pruning.dead_units.weight_connections import Section, has_weights, sections
from splitgrow.utils.preserve import copy_buffers_
from splitgrow.utils.rollback import Undo, temporarily

Statistic: TypeAlias = Literal["rms", "std", "nonzero"]
"""Of a unit's values: their root mean square, standard deviation, or the share that is not zero."""

_STATISTICS: Mapping[str, Callable[[Moments], Tensor]] = {
    "rms": lambda seen: seen.squares.clamp_min(0).sqrt(),
    "std": lambda seen: (seen.squares - seen.mean.square()).clamp_min(0).sqrt(),
    "nonzero": lambda seen: 1 - seen.zeros,
}


class Activation(Criterion):
    """A statistic of the values of a unit, as the layers see them that read it.

    "nonzero" is one less the average percentage of zeros of Hu et al. 2016
    (https://arxiv.org/abs/1607.03250, equation 1). Of several readers the mean counts. It takes one
    forward pass for each batch. A group that no layer reads by weights has no scores.

    Args:
        statistic: "rms", "std" or "nonzero".

    Raises:
        ValueError: If it is another one.
    """

    name = "activation"

    def __init__(self, statistic: Statistic = "rms") -> None:
        if statistic not in _STATISTICS:
            raise ValueError(
                f"statistic must be one of {', '.join(_STATISTICS)}, got {statistic!r}"
            )
        self.statistic = statistic

    def scores(self, view: UnitsInView) -> Mapping[int, Tensor]:
        """The statistic of each unit, as a mean over the layers that read it."""
        statistic = _STATISTICS[self.statistic]
        seen = {name: statistic(moments) for name, moments in moments_in(view, pairs=False).items()}
        total, count = _over_readers(view, seen)
        return _read(view, total / count.clamp_min(1), count)

    def __repr__(self) -> str:
        return f"Activation({self.statistic!r})"


class Reconstruction(Criterion):
    """The squared error of what layers compute of their inputs without a unit, at the best weights.

    A layer that no longer reads a channel can make up for it by the other channels as far as these
    predict it. With the weights w of the channel, and the second moments C of the layer's inputs,
    the error that is left is |w|^2 / (C^-1) at the channel (Hassibi and Stork 1993, "Optimal brain
    surgeon", equation 5, for whole channels). Of kernels with several places, each is taken by
    itself. Of several readers the sum counts. Readers are then fitted: see `refit` of `prune`. It
    takes one forward pass for each batch.

    Args:
        damping: A share of the mean second moment that is added to all of them.
    """

    name = "reconstruction"
    refits = True

    def __init__(self, damping: float = 1e-3) -> None:
        if not isinstance(damping, (int, float)) or isinstance(damping, bool) or damping <= 0:
            raise ValueError(f"damping must be a positive number, got {damping!r}")
        self.damping = damping

    def scores(self, view: UnitsInView) -> Mapping[int, Tensor]:
        """The error without each unit, as a sum over the layers that read it."""
        errors = {
            name: self._errors(view, name, moments) for name, moments in moments_in(view).items()
        }
        total, count = _over_readers(view, {n: own for n, own in errors.items() if own is not None})
        return _read(view, total, count)

    def _errors(self, view: UnitsInView, name: str, moments: Moments) -> Tensor | None:
        """The errors of a layer without each of its inputs; None if it reads these in no way."""
        found = torch.zeros(len(moments.mean), dtype=torch.float64)
        sections = sections_read(view.history.modules[name])
        for section in sections:
            own = slice(section.ins, section.ins + section.weight.shape[1])
            lengths = section.weight.double().square().sum((0, 2)).cpu()
            inverse = torch.linalg.inv(damped(moments.products[own, own], self.damping))
            tiny = torch.finfo(inverse.dtype).tiny
            found[own] += lengths / inverse.diagonal().clamp_min(tiny).cpu()
        return found if sections else None

    def __repr__(self) -> str:
        return f"Reconstruction(damping={self.damping:g})"


def damped(products: Tensor, damping: float) -> Tensor:
    """Second moments with a share of their mean added to the diagonal."""
    mean = products.diagonal().mean().clamp_min(torch.finfo(products.dtype).tiny)
    return products + damping * mean * torch.eye(len(products)).to(products)


@temporarily
def moments_in(undo: Undo, view: UnitsInView, *, pairs: bool = True) -> dict[str, Moments]:
    """The moments of what layers read of the units on all batches, by layer."""
    copy_buffers_(view.model.modules(), undo)
    return input_moments(undo, view.history, view.units.groups, view.run, pairs=pairs)


def sections_read(layer: nn.Module) -> list[Section]:
    """The weights with which a layer reads its inputs; none if it does so in another way."""
    split = split_of(layer)
    plain = split.original if len(split.blocks) == 1 else split.composition().plain()
    entry = known_layer_type(plain)
    if not has_weights(entry, plain):
        return []
    return [section for section in sections(entry, plain) if not section.back]


def _over_readers(view: UnitsInView, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The sum over readers of a number for each channel that they read, and how many there are."""
    graph = view.history.graph
    total = torch.zeros(view.units.count, dtype=torch.float64)
    count = torch.zeros(view.units.count, dtype=torch.float64)
    for name, own in values.items():
        units = view.units.on(graph.nodes[name].ins)
        there = (units >= 0).nonzero().flatten()
        total.index_add_(0, units[there], own.cpu()[there].double())
        count.index_add_(0, units[there], torch.ones(len(there), dtype=torch.float64))
    return total, count


def _read(view: UnitsInView, scores: Tensor, count: Tensor) -> dict[int, Tensor]:
    """Scores by group, of those groups whose units are all read."""
    counts = view.units.by_group(count)
    found = view.units.by_group(scores)
    return {group: own for group, own in found.items() if bool((counts[group] > 0).all())}
