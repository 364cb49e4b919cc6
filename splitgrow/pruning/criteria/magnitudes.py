"""Criteria that look at the weights alone, and the one that looks at nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splitgrow.pruning.criteria.criterion import Criterion, UnitsInView
from splitgrow.pruning.criteria.unit_parameters import ParametersOfUnits, Role


class Magnitude(Criterion):
    """The norm of the weights that make a unit.

    That is the norm of a convolution's filter (Li et al. 2017, https://arxiv.org/abs/1608.08710,
    section 3.1, with p = 1). Of several layers that make a unit together all weights count, and of
    a unit that none makes, those that read it.

    Args:
        p: The exponent of the norm: 1 or 2.

    Raises:
        ValueError: If it is another one.

    Example:
        >>> import torch, splitgrow
        >>> from splitgrow.pruning import Magnitude
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> x = torch.randn(16, 2)
        >>> net = splitgrow.growable(net, x)
        >>> edit = net.prune(0.5, criterion=Magnitude(p=2))
        >>> net.layers[0].width
        4
    """

    def __init__(self, p: int = 1) -> None:
        if p not in {1, 2}:
            raise ValueError(f"p must be 1 or 2, got {p!r}")
        self.p, self.name = p, f"l{p}"

    def scores(self, view: UnitsInView) -> Mapping[int, Tensor]:
        """The norm of the weights of each unit."""
        made, read = (powers(view.units, role, p=self.p) for role in ("makes", "reads"))
        found = torch.where(view.units.covered("makes"), made, read)
        return scored(view, found ** (1 / self.p), view.units.covered("makes", "reads"))

    def __repr__(self) -> str:
        return f"Magnitude(p={self.p})"


class GroupNorm(Criterion):
    """The norm of all weights that make a unit or read it, in all layers.

    That is the group norm of Fang et al. 2023 (DepGraph, https://arxiv.org/abs/2301.12900, equation
    4), without biases and norms.

    Example:
        >>> import torch, splitgrow
        >>> from splitgrow.pruning import GroupNorm
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> x = torch.randn(16, 2)
        >>> net = splitgrow.growable(net, x)
        >>> edit = net.prune(0.5, criterion=GroupNorm())
        >>> net.layers[0].width
        4
    """

    name = "group"

    def scores(self, view: UnitsInView) -> Mapping[int, Tensor]:
        """The norm of the weights of each unit."""
        squares = powers(view.units, "makes", "reads", p=2)
        return scored(view, squares.sqrt(), view.units.covered("makes", "reads"))


class Scale(Criterion):
    """The size of the factor by which a norm scales a unit (Liu et al. 2017, "network slimming").

    See https://arxiv.org/abs/1708.06519, section 3. It is meant for models that were trained with a
    penalty on these factors. Parameters that only multiply channels count as well, as LayerScale's
    do. A group without such a factor has no scores, and its units stay.

    Example:
        >>> import torch, splitgrow
        >>> from splitgrow.pruning import Scale
        >>> norm = torch.nn.BatchNorm1d(8)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), norm, torch.nn.Linear(8, 1))
        >>> net = splitgrow.growable(net.eval(), torch.randn(4, 2))
        >>> edit = net.prune(0.5, criterion=Scale())
        >>> net.layers[0].width
        4
    """

    name = "scale"
    comparable = True

    def scores(self, view: UnitsInView) -> Mapping[int, Tensor]:
        """The absolute values of the factors of each unit, added up."""
        factors = (
            (each, each.sums(each.factors.double().cpu().abs()))
            for each in view.parameters
            if "scales" in each.roles
        )
        return scored(view, view.units.total(factors), view.units.covered("scales"))


class Random(Criterion):
    """Random numbers, from torch's generator: the control for the others.

    Example:
        >>> import torch, splitgrow
        >>> from splitgrow.pruning import Random
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> x = torch.randn(16, 2)
        >>> net = splitgrow.growable(net, x)
        >>> edit = net.prune(0.5, criterion=Random())
        >>> net.layers[0].width
        4
    """

    name = "random"
    comparable = draws = True

    def scores(self, view: UnitsInView) -> Mapping[int, Tensor]:
        """A random number for each unit."""
        return view.units.by_group(torch.rand(view.units.count, dtype=torch.float64))


@torch.no_grad()
def powers(units: ParametersOfUnits, *roles: Role, p: int) -> Tensor:
    """The sum over each unit's weights of their absolute values to the power p.

    Args:
        units: The units.
        roles: The roles of the parameters that count.
        p: The exponent.
    """
    return units.total(
        (each, each.sums(each.value.double().cpu().abs() ** p))
        for each in units.parameters
        if not each.roles.isdisjoint(roles)
    )


def scored(view: UnitsInView, scores: Tensor, covered: Tensor) -> dict[int, Tensor]:
    """Scores by group, without the groups of which some units are not covered."""
    by_group = view.units.by_group(covered)
    found = view.units.by_group(scores)
    return {group: own for group, own in found.items() if bool(by_group[group].all())}
