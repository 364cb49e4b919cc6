"""Sparse training: a penalty on groups of weights, which makes whole units small."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from splitgrow.growth.history import check_structure
from splitgrow.growth.history_lookup import history_of
from splitgrow.pruning.choosing import names_of, prunable_groups
from splitgrow.pruning.criteria.unit_parameters import ParametersOfUnits, UnitParameter


def group_penalty(
    model: nn.Module,
    *,
    layers: Iterable[int | str] | None = None,
    ignore: Iterable[int | str] = (),
) -> Tensor:
    """A penalty to add to the loss, by which training makes the units small that it needs least.

    It is the sum over units of the norm of all weights that make or read the unit, in all layers,
    times the square root of their number: the group lasso (Yuan and Lin 2006, "Model selection and
    estimation in regression with grouped variables", equation 2; for the filters of networks Wen et
    al. 2016, https://arxiv.org/abs/1608.03665, equation 2; for tied layers Fang et al. 2023,
    https://arxiv.org/abs/2301.12900, section 3.3). Units that it has made small go by
    ``model.prune(criterion="group")``. Biases and norms have no penalty.

    Args:
        model: A growable model, grown or not.
        layers: The layers whose units have a penalty, by name or index; None for all but the
            model's outputs.
        ignore: The layers whose units have none.

    Returns:
        A tensor of one number, differentiable by the parameters. Its gradient at a unit whose
        weights are all zero is zero.

    Raises:
        TypeError: If `layers` or `ignore` is no list.
        ValueError: If there is no such layer.
        FixedWidthError: If no layer may lose units.
        SplitGrowError: If the model is not growable.
        StructureChangedError: If it was changed by hand since it was analysed.

    Example:
        >>> import torch, splitgrow
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> x, y = torch.randn(8, 2), torch.randn(8, 1)
        >>> loss = (net(x) - y).square().mean() + 1e-3 * splitgrow.group_penalty(net)
        >>> loss.backward()
    """
    history = history_of(model)
    check_structure(model, history)
    widths = prunable_groups(history.graph, names_of("layers", layers), names_of("ignore", ignore))
    units = ParametersOfUnits(history.graph, history.modules, widths)
    used = [each for each in units.parameters if not each.roles.isdisjoint(("makes", "reads"))]
    squares = units.total((each, _squares(each)) for each in used)
    sizes = units.total((each, each.counts) for each in used).to(squares)
    # The square root has no gradient at zero.
    alive = squares > 0
    norms = torch.where(alive, squares, 1.0).sqrt() * alive
    return (norms * sizes.sqrt()).sum()


def _squares(parameter: UnitParameter) -> Tensor:
    """The sum of squares at each position of a parameter's dimension, in float32 or finer."""
    value = parameter.differentiable
    return parameter.sums(value.to(torch.promote_types(value.dtype, torch.float32)).square())
