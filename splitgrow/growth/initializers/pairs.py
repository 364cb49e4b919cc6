"""New units in pairs that cancel each other out, so that all of their weights learn at once."""

from __future__ import annotations

import torch
from torch import Tensor

from splitgrow.analysis.units import Unit, values_like
from splitgrow.growth.initializers.drawn_units import CopyStatistics, draw_alike_, random_rows
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.growth.starting import set_start_values_
from splitgrow.growth.unit_tensors import UnitTensor, unit_tensors


class Pair(CopyStatistics):
    """New hidden units come in pairs: equal in all that makes them, read with opposite signs.

    With new units V = [A; A] and helpers Z = [B, -B], their effects on old units add up to zero,
    and so do those of C on other new units, V = [.., C, -C]; but both A and B get a gradient at the
    first step (Yuan et al. 2023, https://arxiv.org/abs/2306.12700, equations 4 to 6). A pair has
    one value in all layers that make it and in all norms, also in the running statistics, and it is
    chosen for a whole group of channels: heads and flattened maps are paired as a whole. A is drawn
    as "copy_statistics" does, B with the deviation of the weights for old inputs.

    Twins part at the first step: their gradients have opposite signs, since they are read with
    opposite signs. Where both get none, as behind a ReLU that is closed on all data, they stay
    alike in what makes them. Dropout in training mode leaves out one of a pair and not the other,
    so outputs move there as much as dropout moves them anyhow.

    Args:
        noise: The deviation of independent noise on the second unit of each pair, relative to that
            of its weights. With noise the outputs move, and the claim `exact` is withdrawn.

    Example:
        >>> import torch, splitgrow
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 3))
        >>> edit = net.expand_layer("0", 2, initializer="pair")
        >>> columns = splitgrow.merge(net)[2].weight[:, 4:]
        >>> torch.equal(columns[:, 0], -columns[:, 1])
        True
    """

    name = "pair"
    divides = 2
    first_gradients = frozenset(("new", "helper"))
    differ_from = "step"

    def __init__(self, noise: float = 0.0) -> None:
        if isinstance(noise, bool) or not isinstance(noise, (int, float)):
            raise TypeError(f"noise must be a number, got {noise!r}")
        if not 0 <= noise < 1:
            raise ValueError(f"noise must be at least 0 and below 1, got {noise!r}")
        self.noise = float(noise)
        if noise:
            self.exact, self.differ_from = False, "birth"

    def apply(self, prepared: PreparedEdit) -> None:
        """Draws one unit of each pair and what reads it, and makes the other one its twin."""
        draw_alike_(prepared, self)
        twins: dict[Unit, Unit] = {}  # of the second unit of each pair
        for units in prepared.hidden.values():
            twins |= zip(units[1::2], units[::2], strict=True)
        for each in unit_tensors(prepared):
            whole = each.value()
            if whole is not None:
                self._pair_(each, whole, twins, prepared.generator)
        for name, layer in prepared.layers.items():
            set_start_values_(layer, cancelled=prepared.hidden_on(name))

    def share(self, length: int, old: Tensor) -> float:  # noqa: ARG002
        """One: what a unit reads of pairs adds up to zero."""
        return 1.0

    def _pair_(
        self,
        tensor: UnitTensor,
        whole: Tensor,
        twins: dict[Unit, Unit],
        generator: torch.Generator | None,
    ) -> None:
        dim = tensor.reads
        if dim is not None:
            read = tensor.at(dim, dict.fromkeys((*twins, *twins.values())), whole)
            if len(read):
                whole = _with_helpers(tensor, whole, read, generator)
        whole = values_like(whole, tensor.places, lambda unit: twins.get(unit, unit))
        if dim is not None:
            second = tensor.at(dim, twins, whole)
            whole.index_copy_(dim, second, -whole.index_select(dim, second))
        if self.noise and tensor.weighs and (made := tensor.makes) is not None:
            second = tensor.at(made, twins, whole)
            rows = whole.index_select(made, second)
            size = rows.double().square().mean().sqrt().to(rows.dtype) if rows.numel() else 0.0
            drawn = torch.empty_like(rows).normal_(generator=generator)
            whole.index_copy_(made, second, rows + drawn * size * self.noise)
        tensor.fill_(whole)


def _with_helpers(
    tensor: UnitTensor, whole: Tensor, read: Tensor, generator: torch.Generator | None
) -> Tensor:
    """A tensor whose old units read new ones with the deviation of their other weights."""
    dim = tensor.reads
    assert dim is not None
    old = tensor.old(whole).double()
    deviation = old.square().mean().sqrt()
    columns = whole.index_select(dim, read)
    drawn = random_rows(1, columns.numel(), columns, generator).view(columns.shape) * deviation
    drawn = torch.where(deviation > 0, drawn, columns).to(whole.dtype)
    if (made := tensor.makes) is not None:
        born = tensor.born(made, whole.device)
        born = born.reshape([-1 if each == made else 1 for each in range(whole.dim())])
        drawn = torch.where(born, columns, drawn)
    return whole.index_copy(dim, read, drawn)
