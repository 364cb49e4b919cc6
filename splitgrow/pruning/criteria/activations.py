"""Criteria that look at the values that layers read of each unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from splitgrow.growth.input_moments import InputMoments, input_moments
from splitgrow.layers.tensor_holder import split_of
from splitgrow.layers.types import known_layer_type
from splitgrow.pruning.criteria.criterion import Criterion, UnitsInView
from splitgrow.pruning.criteria.magnitudes import scored
from splitgrow.pruning.dead_units.constants import passes_constants
from splitgrow.pruning.dead_units.weight_connections import Section, has_weights, sections
from splitgrow.utils.rollback import Undo, temporarily

Statistic: TypeAlias = Literal["rms", "std", "nonzero"]
"""Of a unit's values: their root mean square, standard deviation, or the share that is not zero."""

_STATISTICS: Mapping[str, Callable[[InputMoments], Tensor]] = {
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

    Example:
        >>> import torch, splitgrow
        >>> from splitgrow.pruning import Activation
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> x = torch.randn(16, 2)
        >>> net = splitgrow.growable(net, x)
        >>> edit = net.prune(0.5, criterion=Activation("nonzero"), batches=[x])
        >>> net.layers[0].width
        4
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
        total, count = torch.zeros(2, view.units.count, dtype=torch.float64)
        for name, moments in moments_in(view, view.units.groups, pairs=False).items():
            units = view.units.on(view.history.graph.nodes[name].ins)
            there = (units >= 0).nonzero().flatten()
            total.index_add_(0, units[there], _STATISTICS[self.statistic](moments).cpu()[there])
            count.index_add_(0, units[there], torch.ones(len(there), dtype=torch.float64))
        return scored(view, total / count.clamp_min(1), count > 0)

    def __repr__(self) -> str:
        return f"Activation({self.statistic!r})"


class Reconstruction(Criterion):
    """The squared error of what layers compute of their inputs without a unit, at the best weights.

    A layer that no longer reads a unit can make up for it by the others, and by its bias, as far as
    these predict it. With the weights w of the unit, and the second moments C of the layer's
    inputs, the error that is left is w (C^-1)^-1 w, the inverses at the unit's positions (Hassibi
    and Stork 1993, "Optimal brain surgeon", equation 5, for units in place of weights). Of kernels
    with several places, each is taken by itself. Of several readers the sum counts. Readers are
    then fitted: see `refit` of `prune`. It takes one forward pass for each batch.

    Args:
        damping: A share of the mean second moment that is added to all of them.

    Raises:
        ValueError: If it is no positive number.

    Example:
        >>> import torch, splitgrow
        >>> from splitgrow.pruning import Reconstruction
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> x = torch.randn(16, 2)
        >>> net = splitgrow.growable(net, x)
        >>> edit = net.prune(0.5, criterion=Reconstruction(), batches=[x])
        >>> net.layers[0].width
        4
    """

    name = "reconstruction"
    refits = True

    def __init__(self, damping: float = 1e-3) -> None:
        number = isinstance(damping, (int, float)) and not isinstance(damping, bool)
        if not number or not 0 < damping < math.inf:
            raise ValueError(f"damping must be a positive number, got {damping!r}")
        self.damping = damping

    def scores(self, view: UnitsInView) -> Mapping[int, Tensor]:
        """The error without each unit, as a sum over the layers that read it."""
        total = torch.zeros(view.units.count, dtype=torch.float64)
        read = torch.zeros(view.units.count, dtype=torch.bool)
        for name, moments in moments_in(view, view.units.groups).items():
            layer = view.history.modules[name]
            units = view.units.on(view.history.graph.nodes[name].ins)
            second = second_moments(layer, moments)
            for section in _sections_read(layer):
                own = slice(section.ins, section.ins + section.weight.shape[1])
                inverse = torch.linalg.inv(damped(second[own, own], self.damping))
                for positions in _alike(units[own]):
                    here = units[own][positions[:, 0]]
                    errors = _errors(section.weight.double(), inverse, positions)
                    total.index_add_(0, here, errors.cpu())
                    read[here] = True
        return scored(view, total, read)

    def __repr__(self) -> str:
        return f"Reconstruction(damping={self.damping:g})"


def _alike(units: Tensor) -> Iterator[Tensor]:
    """The positions of each unit: a row for each, of all that lie on equally many positions."""
    numbers, inverse, counts = torch.unique(units, return_inverse=True, return_counts=True)
    order = inverse.argsort(stable=True)
    rows = dict[int, list[Tensor]]()
    for number, positions in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):
        if number >= 0:
            rows.setdefault(len(positions), []).append(positions)
    for found in rows.values():
        yield torch.stack(found)


def _errors(weight: Tensor, inverse: Tensor, positions: Tensor) -> Tensor:
    """The error that is left without each of some units.

    Args:
        weight: (outputs, inputs, places in the kernel).
        inverse: The inverse of the inputs' second moments.
        positions: Those of each unit.
    """
    positions = positions.to(inverse.device)
    own = weight.to(inverse.device)[:, positions].movedim(0, -1).flatten(2)
    blocks = inverse[positions[:, :, None], positions[:, None, :]]
    left: Tensor = torch.linalg.solve(blocks, own)
    return (own * left).sum((1, 2))


def damped(products: Tensor, damping: float) -> Tensor:
    """Second moments with a share of their mean added to the diagonal."""
    mean = products.diagonal().mean().clamp_min(torch.finfo(products.dtype).tiny)
    return products + damping * mean * torch.eye(len(products)).to(products)


def second_moments(layer: nn.Module, moments: InputMoments) -> Tensor:
    """The second moments of a layer's inputs, without their means if its bias can take these."""
    return moments.covariance if takes_means(layer) else moments.products


def takes_means(layer: nn.Module) -> bool:
    """Whether a layer's bias can stand for constant inputs."""
    plain = split_of(layer).composition().template
    return passes_constants(plain) and getattr(plain, "bias", None) is not None


@temporarily
def moments_in(
    undo: Undo, view: UnitsInView, groups: Iterable[int], *, pairs: bool = True
) -> dict[str, InputMoments]:
    """The moments of what layers read of some groups on all batches, by layer."""
    return input_moments(undo, view.history, groups, view.run, pairs=pairs)


def _sections_read(layer: nn.Module) -> list[Section]:
    """The weights with which a layer reads its inputs; none if it does so in another way."""
    composition = split_of(layer).composition()
    tensors = {name: composition.value(name) for name in composition.names}
    plain = composition.holding(tensors, training=False)
    entry = known_layer_type(plain)
    if not has_weights(entry, plain):
        return []
    return [section for section in sections(entry, plain) if not section.back]
