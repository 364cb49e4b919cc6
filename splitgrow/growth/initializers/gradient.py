"""Initializers that choose new units by the gradient that they, or their helpers, then get."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from splitgrow.growth.initializers.initializer import Initializer
from splitgrow.growth.initializers.orthonormal import orthonormal_rows
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.growth.probe import Probe, probing
from splitgrow.growth.starting import set_start_values_
from splitgrow.growth.unit_tensors import UnitWeights
from splitgrow.utils.arguments import positive_int

SEARCH_ROUNDS = 6
"""The rounds of the search for directions: each takes two runs of the loss, with gradients."""


def ascended_(
    probe: Probe, moved: list[UnitWeights], silent: list[UnitWeights], passes: int = SEARCH_ROUNDS
) -> float:
    """Turns some weights so that others, which are zero, get the largest gradient.

    If the silent weights take a small step along their own gradient, the gradient of the moved ones
    points where the norm of the former grows. Each round takes the orthonormal rows of that matrix.
    Where everything between the two is linear, this is the block power method, and the rows become
    the leading singular vectors of the gradient as a map from the one to the other.

    Args:
        probe: The model with all of them in place.
        moved: The weights to choose; they have values to start with.
        silent: The weights that are zero, and stay so.
        passes: The number of rounds.

    Returns:
        The sum of squares of the largest gradient that was found.
    """
    best, kept = -1.0, [each.tensor.detach().clone() for each in moved]
    for left in range(passes, -1, -1):
        towards = probe.gradients(silent)
        found = float(sum((g.double().square().sum() for g in towards), torch.zeros(())))
        if found > best:
            best, kept = found, [each.tensor.detach().clone() for each in moved]
        if not left or found == 0.0:
            break
        _step_(silent, towards, found)
        back = probe.gradients(moved)
        for each in silent:
            each.set_(torch.zeros_like(each.tensor))
        for each, gradient in zip(moved, back, strict=True):
            each.set_(each.as_tensor(_orthonormal(each.as_rows(gradient), each)))
    for each, values in zip(moved, kept, strict=True):
        each.set_(values)
    return best


def _step_(silent: list[UnitWeights], towards: list[Tensor], squares: float) -> None:
    """Sets weights that are zero to a small multiple of their gradient."""
    largest = max(each.size for each in silent) or 1.0
    small = torch.finfo(silent[0].tensor.dtype).eps ** 0.5
    for each, gradient in zip(silent, towards, strict=True):
        each.set_(gradient * (small * largest / squares**0.5))


def _orthonormal(rows: Tensor, weights: UnitWeights) -> Tensor:
    """Orthonormal rows that span the same, at the size of the layer's own.

    Rows beyond the rank keep their direction.
    """
    own = torch.nn.functional.normalize(weights.rows.double(), dim=1)
    norms = rows.double().norm(dim=1, keepdim=True)
    known = rows.double() / norms.clamp_min(torch.finfo(torch.float64).tiny)
    known = torch.where(norms > 0, known, own)
    count = min(known.shape)
    found = own.clone()
    found[:count] = orthonormal_rows(known[:count])
    return (found * (weights.size or 1.0)).to(rows.dtype)


class Gradient(Initializer):
    """Helpers zero, and new units such that helpers get the largest gradient.

    The rows of new units are orthonormal, at the mean norm of the layer's own. For two linear
    layers they span the leading right singular vectors of the gradient by the matrix that leads
    from the inputs of the one to the outputs of the other, and for convolutions those of the
    gradient of the auxiliary convolution, as in GradMax (Evci et al. 2022,
    https://arxiv.org/abs/2201.05125, section 3.2) with the two sides exchanged. Between them may be
    anything; the gradient is taken through it. Biases of new units are zero.

    Args:
        passes: The rounds of the search. Each takes two runs of the loss, with gradients.
    """

    name = "gradient"
    needs_data = True
    keeps_variance = True

    def __init__(self, passes: int = SEARCH_ROUNDS) -> None:
        self.passes = positive_int("passes", passes)

    def apply(self, prepared: PreparedEdit) -> None:
        """Sets the helpers to zero, and chooses the rows of new units.

        Raises:
            ValueError: If no layer reads new units that may have any values.
        """
        for layer in prepared.layers.values():
            set_start_values_(layer)
        with probing(prepared) as probe:
            refuse_unread(self.name, probe)
            without_bias_(probe.new)
            ascended_(probe, probe.new, probe.helpers, self.passes)


class GradMax(Initializer):
    """New units zero, and helpers such that new units get the largest gradient.

    The columns of helpers are orthonormal, at the mean norm of the layer's own rows: GradMax as
    published (Evci et al. 2022, https://arxiv.org/abs/2201.05125, equation 7). New units with a
    ReLU behind them get no gradient, since torch takes its slope at zero for 0; they are refused.

    Args:
        passes: The rounds of the search. Each takes two runs of the loss, with gradients.
    """

    name = "gradmax"
    needs_data = True
    first_gradients = frozenset(("new",))
    differ_from = "step"

    def __init__(self, passes: int = SEARCH_ROUNDS) -> None:
        self.passes = positive_int("passes", passes)

    def apply(self, prepared: PreparedEdit) -> None:
        """Sets new units to zero, and chooses the helpers.

        Raises:
            ValueError: If new units of zero get no gradient, or no layer reads them.
        """
        for layer in prepared.layers.values():
            set_start_values_(layer)
        with probing(prepared) as probe:
            refuse_unread(self.name, probe)
            without_bias_(probe.new)
            for each in probe.new:
                each.set_(torch.zeros_like(each.tensor))
            turned = [each.by_inputs for each in probe.helpers]
            before = probe.value()
            for each in turned:
                torch.nn.init.normal_(each.tensor, generator=prepared.generator)
                each.set_(each.as_tensor(_orthonormal(each.rows, each)))
            if not ascended_(probe, turned, probe.new, self.passes):
                raise ValueError(
                    f"new units of {_named(probe)} that are zero would never learn: they get no "
                    f"gradient, as behind a ReLU, whose slope at zero is 0; choose 'gradient' or "
                    f"'zero'"
                )
            small = torch.finfo(turned[0].tensor.dtype).eps ** 0.5
            if not math.isclose(before, probe.value(), rel_tol=small, abs_tol=small):
                raise ValueError(
                    f"new units of {_named(probe)} whose weights are zero are not silent, as "
                    f"behind a sigmoid or a bias; choose 'gradient' or 'zero'"
                )


def _named(probe: Probe) -> str:
    return ", ".join(repr(each.layer.name) for each in probe.new[:3])


def without_bias_(new: list[UnitWeights]) -> None:
    """Sets the biases of new units to zero, so that only their weights matter."""
    for each in new:
        bias = getattr(each.block, "bias", None)
        if isinstance(bias, Tensor):
            torch.nn.init.zeros_(bias)


def refuse_unread(name: str, probe: Probe) -> None:
    """Makes sure that an edit has new units to choose, and layers that read them.

    Raises:
        ValueError: If it has not.
    """
    if probe.new and probe.helpers:
        return
    request = ", ".join(map(repr, probe.prepared.edit.request)) or "the edit"
    raise ValueError(
        f"initializer {name!r} has nothing to choose for {request}: "
        + (
            "no layer with weights reads the new units"
            if probe.new
            else "the new units must be zeros, means or copies of others, or none has weights"
        )
        + "; choose 'zero'"
    )
