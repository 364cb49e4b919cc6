r"""Proximal steps: the effect of penalties and bounds on weights after each step of a training.

A penalty :math:`\lambda R(W)` is not added to the loss. After each step with the learning rate
:math:`\eta` the weights are replaced by

.. math:: \operatorname{argmin}_V \tfrac{1}{2} \|V - W\|^2 + \eta \lambda R(V)

so that zeros are exact.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from splitgrow.continual.units import Units

_SMALLEST = 0.05


@torch.no_grad()
def soften_(weight: Tensor, threshold: float) -> None:
    r"""The step of the L1 norm: :math:`\mathrm{sign}(w) \max(|w| - \theta, 0)`."""
    weight.copy_(weight.sign() * (weight.abs() - threshold).clamp(min=0))


@torch.no_grad()
def shrink_(units: Units, values: Mapping[str, Tensor], marks: Tensor, threshold: float) -> Tensor:
    r"""The step of the group lasso, :math:`W_g \max(1 - \theta / \|W_g\|_2, 0)`.

    Args:
        units: The units.
        values: The tensors that are changed, by slots' names. The part of these that tells the size
            of a unit (`Units.sizes`) is one group.
        marks: The units whose groups are shrunk, by number.
        threshold: The norm to take off.

    Returns:
        The units whose groups are zero from here on, by number.
    """
    factors = (1 - threshold / units.sizes(values)).clamp(min=0).nan_to_num(0.0)
    units.resize_(values, torch.where(marks, factors, torch.ones_like(factors)))
    return marks & (units.sizes(values) == 0)


@torch.no_grad()
def lower_(units: Units, values: Mapping[str, Tensor], marks: Tensor, size: float) -> None:
    """Brings groups, as in `shrink_`, down to a 2-norm, where they are above it.

    Never to less than a twentieth of their size: below that they would hardly begin to learn.

    Args:
        units: The units.
        values: The tensors that are changed, by slots' names.
        marks: The units whose groups are changed, by number.
        size: The norm.
    """
    factors = (size / units.sizes(values)).clamp(_SMALLEST, 1).nan_to_num(1.0)
    units.resize_(values, torch.where(marks, factors, torch.ones_like(factors)))


@torch.no_grad()
def pull_(weights: Mapping[str, Tensor], before: Mapping[str, Tensor], strength: float) -> None:
    r"""The step of :math:`\lambda \|W - W_0\|^2`: :math:`(W + 2 \theta W_0) / (1 + 2 \theta)`."""
    for name, weight in weights.items():
        if name in before:
            weight.add_(2 * strength * before[name]).div_(1 + 2 * strength)


def drift_of(units: Units, weights: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor:
    """The drift of each unit's incoming weights from their earlier values, by number.

    It is the 2-norm of the difference, in double precision, over the weights that existed before.
    """
    pairs = {name: (w, before[name]) for name, w in weights.items() if name in before}
    return units.norms({name: w.detach().double() - b.double() for name, (w, b) in pairs.items()})


@torch.no_grad()
def pull_back_(
    units: Units,
    weights: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    masks: Mapping[str, Tensor],
    radius: float,
) -> None:
    """Moves units' incoming weights back to within a distance from their earlier values.

    It takes the nearest values within it; rounding included, none is beyond afterwards.

    Args:
        units: The units.
        weights: The tensors that are changed, by slots' names.
        before: Their earlier values; weights without one are free.
        masks: The weights that may differ at all; the others are not looked at.
        radius: The distance, in the 2-norm of all of a unit's incoming weights.
    """
    own = {name: weight for name, weight in weights.items() if name in before}
    for margin in (1e-6, 1e-3, 1.0):
        apart = {n: torch.where(masks[n], w, before[n]) for n, w in own.items()}
        found = drift_of(units, apart, before)
        beyond = found > radius
        if not bool(beyond.any()):
            return
        factors = torch.where(beyond, (1 - margin) * radius / found, torch.ones_like(found))
        for part in units.given(own):
            if not bool(beyond[part.outs].any()):
                continue
            weight, origin = own[part.slot], before[part.slot]
            share = part.rows(factors)
            nearer = (origin.double() + share * (apart[part.slot] - origin).double()).to(origin)
            moved = part.rows(beyond)
            weight.copy_(torch.where(moved, nearer, apart[part.slot]))
