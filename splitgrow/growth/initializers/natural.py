"""Initializers that choose new units and helpers by the decrease of the loss that they bring."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

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

_LARGEST = 1.0
"""The largest size of a step, relative to the best one to first order."""
_SIZES = 12
"""The most sizes that the line search tries, each half the one before."""
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
    along the whole gradient. One batch tells less than the step can fit, so what the network has
    already bounds it: no row of a new unit, and no column of a helper, is longer than the mean of
    those that exist. Directions that few samples tell about are damped. A line search from the
    whole step downwards finds the lowest loss; if none is lower, the helpers stay zero, and nothing
    has changed. A loss with random numbers, as with dropout, is measured over some that the search
    has not seen. `Edit.loss` has the loss before and after.

    Args:
        passes: The rounds of the search for new units. Each takes two runs of the loss, with
            gradients, and two more choose the helpers. The line search takes 4 to 14 runs without,
            the record of the loss 3, of a random loss about four times as many.
        project: Whether new units leave to the old weights all that these can do. Where the past is
            frozen they can do nothing.
        held_out: A closure as `loss=`, on data that this does not see. The line search then takes
            it, and `Edit.loss` is of it: growth does not raise the loss on these data.

    Raises:
        TypeError: If `passes` is no int, or `held_out` no function.
        ValueError: If `passes` is not positive.

    Example:
        >>> import torch, splitgrow
        >>> from splitgrow.growth.initializers.natural import Tiny
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
        >>> x, unseen = torch.randn(16, 2), torch.randn(16, 2)
        >>> net = splitgrow.growable(net, x)
        >>> def loss(x):
        ...     return (net(x) - x.prod(1, keepdim=True)).square().mean()
        >>> tiny = Tiny(held_out=lambda: loss(unseen))
        >>> edit = net.expand_layer("0", 2, initializer=tiny, loss=lambda: loss(x))
        >>> edit.loss[1] <= edit.loss[0]
        True
    """

    name = "tiny"
    exact = False
    needs_data = True
    fisher = False

    def __init__(
        self,
        passes: int = 2,
        *,
        project: bool = True,
        held_out: Callable[[], Tensor] | None = None,
    ) -> None:
        self.passes, self.project = positive_int("passes", passes), project
        if held_out is not None and not callable(held_out):
            raise TypeError(f"held_out must be a function that returns a loss, got {held_out!r}")
        self.held_out = held_out

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
            for each in probe.new:
                each.set_(each.as_tensor(_bounded(each.rows, each.size)))
            self.searched_(probe)
            probe.settle_()
            best, _ = best_steps(probe, fisher=self.fisher, project=False, ridge=True)
            _line_search_(probe, [*map(_with_bound, best)])

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


def _tell_if_unsteady(losses: Sequence[float], name: str = "loss") -> None:
    """Warns of a loss that differs between runs that should give the same: helpers are zero."""
    other = max(losses, key=lambda loss: abs(loss - losses[0]))
    if abs(other - losses[0]) > _STEADY * max(map(abs, losses)):
        warnings.warn(
            f"{name} gives {losses[0]:.4g}, and {other:.4g} for the same weights and random "
            f"numbers: it must use the same batch each time (take it before, not inside of the "
            f"closure), or steps cannot be compared",
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
        filled[: len(scaled)] = _bounded(scaled, new.size)
        new.set_(new.as_tensor(filled.to(new.tensor.dtype)))


def _bounded(rows: Tensor, longest: float) -> Tensor:
    """Rows that are no longer than a length; any where that is zero, and so tells nothing."""
    norms = rows.norm(dim=1, keepdim=True)
    return torch.where((norms > longest) & (longest > 0), rows * (longest / norms), rows)


def _with_bound(step: Expansion) -> Expansion:
    """A step whose columns, one for each unit read, are no longer than those of the old units.

    The batch alone does not bound the column of a unit that hardly moves there.
    """
    columns = step.helper.by_inputs
    dim = columns.dim
    bounded = _bounded(columns.as_rows(step.step), columns.of.size(dim))
    return replace(step, step=columns.as_tensor(bounded))


def _line_search_(probe: Probe, steps: Sequence[Expansion]) -> None:
    """Scales the steps of helpers, by at most one, to the lowest loss; zero if none is lower.

    `Expansion.gains` are largest at one. A longer step would lower the loss on the batch further,
    but by learning it by heart.
    """

    def set_(size: float) -> None:
        for each in steps:
            each.helper.set_(each.step * size)

    def at(size: float) -> float:
        set_(size)
        return probe.expected()

    before = at(0.0)
    best, lowest = 0.0, before
    for halvings in range(_SIZES):
        size = _LARGEST * 0.5**halvings
        now = at(size)
        if now < lowest:
            best, lowest = size, now
        elif best:
            break
    if probe.prepared.held_out is not None:
        _tell_if_unsteady([before, at(0.0)], "held_out")
    set_(best)


class Fisher(Tiny):
    """As "tiny", in the metric of the Fisher information.

    The outputs of reading layers count by the second moments of their gradients as well. The gain
    is then the natural expansion score of SENN (Mitchell et al. 2023,
    https://arxiv.org/abs/2307.04526, equation 5), with the Fisher information in Kronecker factors.
    """

    name = "fisher"
    fisher = True
