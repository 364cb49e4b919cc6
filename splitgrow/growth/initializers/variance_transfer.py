"""Pairs of new units, with older weights scaled down for the number of units that are read now."""

from __future__ import annotations

import math
import warnings

import torch

from splitgrow.errors import SplitGrowWarning
from splitgrow.growth.initializers.norms_behind import batch_norms_behind
from splitgrow.growth.initializers.pairs import Pair
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.growth.unit_tensors import UnitTensor, unit_tensors
from splitgrow.utils.source_lines import levels_to_caller
from splitgrow.utils.spans import laid_along


class VarianceTransfer(Pair):
    """Pairs, and the old weights of what reads them times sqrt(inputs before / inputs after).

    So weights have the variance that an initialization of the new width gives them, and the pairs
    that of the old ones (Yuan et al. 2023, https://arxiv.org/abs/2306.12700, section 3.1, with the
    running statistics of batch norms scaled likewise). Right behind a layer whose weights are
    scaled, a batch norm takes the factor back, up to its eps. Elsewhere the outputs move: there is
    a warning, and the edit records how far. It changes the weights of existing blocks, so it is
    refused where these are frozen.

    Args:
        noise: As in `Pair`.

    Example:
        >>> import torch, splitgrow
        >>> _ = torch.manual_seed(0)
        >>> layers = [torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 5)]
        >>> net = torch.nn.Sequential(*layers, torch.nn.BatchNorm1d(5))
        >>> net = splitgrow.growable(net.eval(), torch.ones(2, 3))
        >>> edit = net.expand_layer("0", 2, initializer="variance_transfer", freeze=False)
        >>> edit.moved < 0.001
        True
    """

    name = "variance_transfer"
    exact = False
    needs_unfrozen = True

    def apply(self, prepared: PreparedEdit) -> None:
        """Scales the old weights, and draws pairs beside them."""
        exposed = []
        for each in unit_tensors(prepared):
            factor = _factor(each, prepared)
            whole = each.value()
            if factor == 1.0 or whole is None or each.reads is None:
                continue
            born = each.born(each.reads, whole.device)
            scale = torch.ones(len(born), dtype=torch.float64, device=whole.device)
            scale = laid_along(scale.masked_fill(~born, factor), each.reads, whole.dim())
            each.layer.fill_(each.key, (whole * scale).to(whole.dtype))
            if not _take_in_(prepared, each, factor):
                exposed.append(each.layer.name)
        if exposed:
            names = ", ".join(f"`{name}`" for name in dict.fromkeys(exposed))
            warnings.warn(
                f"initializer {self.name!r} scales the old weights of {names}, and no batch norm "
                f"right behind takes that back: the outputs move, by `edit.moved` of the largest",
                SplitGrowWarning,
                stacklevel=levels_to_caller(),
            )
        super().apply(prepared)


def _factor(tensor: UnitTensor, prepared: PreparedEdit) -> float:
    """The factor for a tensor's old weights: one where it reads no more hidden units."""
    dim = tensor.reads
    if dim is None:
        return 1.0
    hidden = {unit for units in prepared.hidden.values() for unit in units}
    more = sum(unit in hidden for unit, _ in tensor.places[dim])
    born = int(tensor.born(dim, torch.device("cpu")).sum())
    before = len(tensor.places[dim]) - born
    return math.sqrt(before / (before + more))


def _take_in_(prepared: PreparedEdit, tensor: UnitTensor, factor: float) -> bool:
    """Scales the statistics of the batch norm behind a layer; False if there is none."""
    norms = batch_norms_behind(prepared, tensor.layer.name)
    for norm in norms:
        norm.running_mean.mul_(factor)
        norm.running_var.mul_(factor**2)
    for block in tensor.layer.existing if norms else ():
        bias = getattr(block, "bias", None)
        if bias is not None:  # it is a part of the norm's mean
            bias.mul_(factor)
    return bool(norms)
