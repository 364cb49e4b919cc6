"""Criteria that estimate from gradients how the loss changes without a unit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from splitgrow.pruning.criteria.criterion import Criterion, UnitsInView
from splitgrow.pruning.criteria.magnitudes import scored
from splitgrow.pruning.criteria.unit_parameters import Role, UnitParameter
from splitgrow.utils.rollback import Undo, temporarily


class Taylor(Criterion):
    """The squared change of the loss without a unit, to first order, as a mean over batches.

    The change is the sum over weights of the weight times its gradient (Molchanov et al. 2019,
    https://arxiv.org/abs/1906.10771, equation 8), over all weights that read the unit: these go
    with it. Of a unit that is read without weights, as in the products of attention, the weights
    count that make it. So do, in part, those of a weight that a reader and a maker share, as tied
    embeddings do. It takes a forward and a backward pass for each batch. The square is of a batch's
    mean: small batches tell more.

    Example:
        >>> import torch, splitgrow
        >>> from splitgrow.pruning import Taylor
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> x = torch.randn(16, 2)
        >>> net = splitgrow.growable(net, x)
        >>> def loss(net, batch):
        ...     return net(batch).square().mean()
        >>> edit = net.prune(0.5, criterion=Taylor(), loss=loss, batches=[x])
        >>> net.layers[0].width
        4
    """

    name = "taylor"

    def scores(self, view: UnitsInView) -> Mapping[int, Tensor]:
        """The mean squared change of the loss without each unit."""

        def change(parameter: UnitParameter, gradient: Tensor) -> Tensor:
            return parameter.sums(parameter.value.double().cpu() * gradient)

        return _by_readers(view, _means(view, change, torch.square))


class FisherInformation(Criterion):
    """The change of the loss without a unit, to second order: optimal brain damage.

    It is half the sum of squares of the weights that read the unit, each times the mean square of
    its gradient over the batches, which is the diagonal of the empirical Fisher information and
    stands for that of the Hessian (LeCun et al. 1990, "Optimal brain damage", equation 5; Theis et
    al. 2018, https://arxiv.org/abs/1801.05787, equation 7). Of a unit that is read without weights
    those count that make it. It takes a forward and a backward pass for each batch; small batches
    tell more.

    Example:
        >>> import torch, splitgrow
        >>> from splitgrow.pruning import FisherInformation
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> x = torch.randn(16, 2)
        >>> net = splitgrow.growable(net, x)
        >>> def loss(net, batch):
        ...     return net(batch).square().mean()
        >>> edit = net.prune(0.5, criterion=FisherInformation(), loss=loss, batches=[x])
        >>> net.layers[0].width
        4
    """

    name = "fisher"

    def scores(self, view: UnitsInView) -> Mapping[int, Tensor]:
        """The mean change of the loss without each unit."""

        def change(parameter: UnitParameter, gradient: Tensor) -> Tensor:
            return parameter.sums((parameter.value.double().cpu() * gradient).square()) / 2

        return _by_readers(view, _means(view, change, lambda changes: changes))


@temporarily
def _means(
    undo: Undo,
    view: UnitsInView,
    change: Callable[[UnitParameter, Tensor], Tensor],
    counted: Callable[[Tensor], Tensor],
) -> dict[Role, Tensor]:
    """For each role the mean over batches of what a unit's parameters of that role say.

    Args:
        undo: Freezes parameters again that are frozen.
        view: The units.
        change: A number for each position of a parameter, given its gradient.
        counted: The change of a unit in a batch as it counts in the mean.
    """
    roles: tuple[Role, ...] = ("reads", "makes")
    used = [p for p in view.parameters if not p.roles.isdisjoint(roles) and not p.is_computed]
    parts = [*{id(part): part for each in used for part in each.parts}.values()]
    means = {role: torch.zeros(view.units.count, dtype=torch.float64) for role in roles}
    if not parts:
        return means
    for part in parts:
        if not part.requires_grad:
            undo.on_failure(partial(part.requires_grad_, False))
            part.requires_grad_(True)
    with torch.enable_grad():
        for loss in view.losses():
            gradients = _gradients(loss, parts)
            found = [(each, change(each, each.gradient(gradients))) for each in used]
            for role in roles:
                own = (item for item in found if role in item[0].roles)
                means[role] += counted(view.units.total(own)) / len(view.batches)
    return means


def _gradients(loss: Tensor, parts: Sequence[nn.Parameter]) -> dict[int, Tensor]:
    """The gradients of parameters by their ids; zeros for those that the loss does not reach.

    Raises:
        ValueError: If the loss depends on no parameter.
    """
    if not loss.requires_grad:
        raise ValueError(
            "the loss does not depend on the model's parameters: it must be computed from the "
            "model's outputs, and neither under no_grad nor detached"
        )
    found = torch.autograd.grad(loss, parts, allow_unused=True, materialize_grads=True)
    return {
        id(part): gradient.to_dense() if gradient.is_sparse else gradient
        for part, gradient in zip(parts, found, strict=True)
    }


def _by_readers(view: UnitsInView, means: Mapping[Role, Tensor]) -> dict[int, Tensor]:
    """What readers say of a unit, or, where it has none, the layers that make it."""
    used = [each for each in view.parameters if not each.is_computed]
    read, made = (view.units.covered(role, among=used) for role in ("reads", "makes"))
    return scored(view, torch.where(read, means["reads"], means["makes"]), read | made)
