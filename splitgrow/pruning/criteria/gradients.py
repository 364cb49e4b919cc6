"""Criteria that estimate from gradients how the loss changes without a unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from splitgrow.pruning.criteria.criterion import Criterion, UnitsInView
from splitgrow.pruning.criteria.magnitudes import scored
from splitgrow.pruning.criteria.unit_parameters import Role, UnitParameter


class Taylor(Criterion):
    """The squared change of the loss without a unit, to first order, as a mean over batches.

    The change is the sum over weights of the weight times its gradient (Molchanov et al. 2019,
    https://arxiv.org/abs/1906.10771, equation 8), over all weights that read the unit; these are
    the weights with which it goes. Of a unit that is read without weights, as in the products of
    attention, the weights count that make it. It takes a forward and a backward pass for each
    batch. The square is of a batch's mean: small batches tell more.
    """

    name = "taylor"
    comparable = True

    def scores(self, view: UnitsInView) -> Mapping[int, Tensor]:
        """The mean squared change of the loss without each unit."""

        def change(parameter: UnitParameter, gradient: Tensor) -> Tensor:
            return parameter.sums(parameter.value.double().cpu() * gradient)

        return _by_readers(view, _means(view, change, torch.square))


class Fisher(Criterion):
    """The change of the loss without a unit, to second order: optimal brain damage.

    It is half the sum of squares of the weights that read the unit, each times the mean square of
    its gradient over the batches, which is the diagonal of the empirical Fisher information and
    stands for that of the Hessian (LeCun et al. 1990, "Optimal brain damage", equation 5; Theis et
    al. 2018, https://arxiv.org/abs/1801.05787, equation 7). The units that are read without weights
    are scored as by "taylor". It takes a forward and a backward pass for each batch; small batches
    tell more.
    """

    name = "fisher"
    comparable = True

    def scores(self, view: UnitsInView) -> Mapping[int, Tensor]:
        """The mean change of the loss without each unit."""

        def change(parameter: UnitParameter, gradient: Tensor) -> Tensor:
            return parameter.sums((parameter.value.double().cpu() * gradient).square()) / 2

        return _by_readers(view, _means(view, change, lambda changes: changes))


def _means(
    view: UnitsInView,
    change: Callable[[UnitParameter, Tensor], Tensor],
    counted: Callable[[Tensor], Tensor],
) -> dict[Role, Tensor]:
    """For each role the mean over batches of what a unit's parameters of that role say.

    Args:
        view: The units.
        change: A number for each position of a parameter, given its gradient.
        counted: The change of a unit in a batch as it counts in the mean.
    """
    roles: tuple[Role, ...] = ("reads", "makes")
    used = [each for each in view.parameters if each.role in roles and not each.is_computed]
    parts = [part for each in used for part in each.parts]
    if not parts:
        return {}
    frozen = [part for part in parts if not part.requires_grad]
    means = {role: torch.zeros(view.units.count, dtype=torch.float64) for role in roles}
    count = 0
    try:
        for part in frozen:
            part.requires_grad_(True)
        with torch.inference_mode(mode=False), torch.enable_grad():
            for loss in view.losses():
                gradients = _gradients(loss, parts)
                for role in roles:
                    own = [each for each in used if each.role == role]
                    found = [(each, each.gradient(gradients)) for each in own]
                    total = view.units.total(
                        (each, change(each, gradient))
                        for each, gradient in found
                        if gradient is not None
                    )
                    means[role] += counted(total)
                count += 1
    finally:
        for part in frozen:
            part.requires_grad_(False)
    return {role: mean / count for role, mean in means.items()}


def _gradients(loss: Tensor, parts: list[nn.Parameter]) -> dict[int, Tensor | None]:
    """The gradients of parameters by their ids; zeros for those that the loss does not reach.

    Raises:
        ValueError: If the loss does not depend on any of them.
    """
    unique = [*{id(part): part for part in parts}.values()]
    if not loss.requires_grad:
        raise ValueError("the loss does not depend on the model's parameters")
    found = torch.autograd.grad(loss, unique, allow_unused=True)
    return {
        id(part): torch.zeros_like(part) if gradient is None else gradient.detach()
        for part, gradient in zip(unique, found, strict=True)
    }


def _by_readers(view: UnitsInView, means: Mapping[Role, Tensor]) -> dict[int, Tensor]:
    """What readers say of a unit, or, where it has none, the layers that make it."""
    used = [each for each in view.parameters if not each.is_computed]
    read, made = view.units.covered(("reads",), used), view.units.covered(("makes",), used)
    if not means:
        return {}
    return scored(view, torch.where(read, means["reads"], means["makes"]), read | made)
