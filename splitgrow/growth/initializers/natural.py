"""Initializers that choose new units and helpers by the decrease of the loss that they bring."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from splitgrow.errors import SplitGrowWarning
from splitgrow.growth.initializers.best_steps import (
    Expansion,
    best_steps,
    left_out,
    moments_by,
    seen_calls,
    solved,
)
from splitgrow.growth.initializers.conjugate_gradients import inner_product
from splitgrow.growth.initializers.gradient import (
    refuse_unread,
    without_bias_,
)
from splitgrow.growth.initializers.initializer import Initializer
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.growth.probe import BlockCall, Probe, probing
from splitgrow.growth.starting import set_start_values_
from splitgrow.utils.arguments import positive_int
from splitgrow.utils.source_lines import levels_to_caller

_HALVINGS = 12
_DOUBLINGS = 6
_STEADY = 0.01
"""The largest difference between equal runs of a loss, relative to it, that counts as rounding."""


class Tiny(Initializer):
    """New units and helpers that lower the loss most, to first order.

    The natural gradient of the layer's expressivity bottleneck (Verbockhaven et al. 2024,
    https://arxiv.org/abs/2405.19816, section 4): of all that the gradient asks of the reading
    layers' outputs and that the old weights cannot do, new units take the part that is largest for
    their size on the batch. For two linear layers they are the leading singular vectors of
    S^(-1/2) N. Between making and reading layer may be anything. Batch norms of new units get the
    statistics of the batch.

    The paper moves the old weights at the same time. They stay here, so helpers take the best step
    along the whole gradient. A line search over its size finds the lowest loss on the batch; if
    none is lower, the helpers stay zero, and nothing has changed. A loss with random numbers, as
    with dropout, is measured over some that the search has not seen. `Edit.loss` has the loss
    before and after.

    Args:
        passes: The rounds of the search for new units. Each takes two runs of the loss, with
            gradients. The line search takes up to 20 runs without, of a random loss four times as
            many.
        project: Whether new units leave to the old weights all that these can do. Where the past is
            frozen they can do nothing.
    """

    name = "tiny"
    exact = False
    needs_data = True
    fisher = False

    def __init__(self, passes: int = 4, *, project: bool = True) -> None:
        self.passes, self.project = positive_int("passes", passes), project

    def apply(self, prepared: PreparedEdit) -> None:
        """Chooses the rows of new units, and the helpers.

        Raises:
            ValueError: If no layer reads new units that may have any values, or one that is no
                Linear and no convolution makes or reads them.
        """
        for layer in prepared.layers.values():
            set_start_values_(layer)
        with probing(prepared) as probe:
            refuse_unread(self.name, probe)
            without_bias_(probe.new)
            best = self.searched_(probe)
            probe.settle_()
            if self.project:
                best, _ = best_steps(probe, fisher=self.fisher, project=False)
            _line_search_(probe, best)

    def searched_(self, probe: Probe) -> list[Expansion]:
        """Chooses the rows of new units; returns the best first steps of the helpers then."""
        best: list[Expansion] = []
        kept: list[Tensor] = []
        losses: list[float] = []
        for left in range(self.passes, -1, -1):
            probe.settle_(held=True)
            steps, calls = best_steps(probe, fisher=self.fisher, project=self.project)
            losses.append(probe.last)
            if not best or _gain(steps) > _gain(best):
                best, kept = steps, [each.tensor.detach().clone() for each in probe.new]
            if left:
                _turn_(probe, steps, calls)
        for each, values in zip(probe.new, kept, strict=True):
            each.set_(values)
        _tell_if_unsteady(losses)
        return best


def _gain(steps: Sequence[Expansion]) -> float:
    return sum(float(step.gains.sum()) for step in steps)


def _tell_if_unsteady(losses: Sequence[float]) -> None:
    """Warns of a loss that differs between runs that should give the same: helpers are zero."""
    other = max(losses, key=lambda loss: abs(loss - losses[0]))
    if abs(other - losses[0]) > _STEADY * max(map(abs, losses)):
        warnings.warn(
            f"loss gives {losses[0]:.4g}, and {other:.4g} for the same weights and random numbers: "
            f"it must use the same batch each time (take it before, not inside of the closure), or "
            f"steps cannot be compared",
            SplitGrowWarning,
            stacklevel=levels_to_caller(),
        )


def _turn_(
    probe: Probe, steps: Sequence[Expansion], calls: dict[nn.Module, list[BlockCall]]
) -> None:
    """Turns new units to where the gain of their helpers grows: a round of the power method."""
    length = sum(inner_product(each.step, each.step) for each in steps) ** 0.5
    if not length or not probe.new:
        return
    size = max(each.helper.size for each in steps) or 1.0
    small = torch.finfo(steps[0].step.dtype).eps ** 0.5 * size / length
    for each in steps:
        each.helper.set_(each.step * small)
    with probe.watching([each.helper.block for each in steps if each.left]) as seen:
        back = probe.gradients(probe.new, lambda: left_out(steps, seen))
    for each in steps:
        each.helper.set_(torch.zeros_like(each.step))
    for new, gradient in zip(probe.new, back, strict=True):
        own = seen_calls(calls, new)
        towards = solved(new, own, -gradient)
        spread = new.as_rows(moments_by(new, own)(towards)).double()
        rows = new.as_rows(towards).double()
        values, vectors = torch.linalg.eigh(rows @ spread.T)
        keep = values > values.max().clamp_min(0) * 1e-10
        if not bool(keep.any()):
            continue
        white = vectors[:, keep] / values[keep].sqrt()
        made = white.T.flip(0) @ rows  # uncorrelated on the batch, the strongest first
        scaled = made * ((new.size or 1.0) / made.norm(dim=1).mean())
        filled = new.rows.double().clone()
        filled[: len(scaled)] = scaled
        new.set_(new.as_tensor(filled.to(new.tensor.dtype)))


def _line_search_(probe: Probe, steps: Sequence[Expansion]) -> None:
    """Scales the steps of helpers to the lowest loss; zero if none is lower."""

    def at(size: float) -> float:
        for each in steps:
            each.helper.set_(each.step * size)
        return probe.expected()

    best, size, lowest = 0.0, 1.0, at(0.0)
    now = at(size)
    factor, tries = (2.0, _DOUBLINGS) if now < lowest else (0.5, _HALVINGS)
    for _ in range(tries):
        if now < lowest:
            best, lowest = size, now
        elif best:
            break
        size *= factor
        now = at(size)
    if now < lowest:
        best = size
    for each in steps:
        each.helper.set_(each.step * best)


class Fisher(Tiny):
    """As "tiny", in the metric of the Fisher information.

    The outputs of reading layers count by the second moments of their gradients as well. The gain
    is then the natural expansion score of SENN (Mitchell et al. 2023,
    https://arxiv.org/abs/2307.04526, equation 5), with the Fisher information in Kronecker factors.
    """

    name = "fisher"
    fisher = True
