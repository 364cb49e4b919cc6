"""New units as copies of old ones, with what reads a unit shared out among its copies."""

from __future__ import annotations

from dataclasses import replace

import torch

from splitgrow.analysis.units import Unit, values_like
from splitgrow.growth.initializers.initializer import Initializer
from splitgrow.growth.prepared import PreparedEdit
from splitgrow.growth.starting import set_start_values_
from splitgrow.growth.unit_tensors import unit_tensors
from splitgrow.utils.spans import laid_along


class Net2Net(Initializer):
    """New hidden units are copies of old ones, and what reads a unit is shared out among them.

    Each new unit k copies a random old one m(k), in all layers that make it and in all norms, also
    in the running statistics. The weights for a unit and its copies are those for the unit times
    shares that add up to one (Chen et al. 2016, https://arxiv.org/abs/1511.05641, equations 1
    and 2). The shares differ, so that copies get different gradients and part; the old unit keeps
    the largest (Wang et al. 2023, https://arxiv.org/abs/2310.07999, section 3.1, on unequal
    shares). It changes the weights of existing blocks, so it is refused where these are frozen.

    Optimizers keep their averages of the old weights, which are then those of larger ones.

    Example:
        >>> import torch, splitgrow
        >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 3))
        >>> before = net(torch.ones(1, 3))
        >>> edit = net.expand_layer("0", 2, initializer="net2net", freeze=False)
        >>> torch.allclose(net(torch.ones(1, 3)), before)
        True
    """

    name = "net2net"
    needs_unfrozen = True
    first_gradients = frozenset(("new", "helper"))
    differ_from = "step"
    keeps_variance = True

    def apply(self, prepared: PreparedEdit) -> None:
        """Copies units, and shares out the weights for them."""
        likes, shares = _chosen(prepared)
        for each in unit_tensors(prepared):
            whole, dim = each.value(), each.reads
            if whole is None:
                continue
            whole = values_like(whole, each.places, lambda unit: likes.get(unit, unit))
            if dim is None or not any(unit in shares for unit, _ in each.places[dim]):
                each.fill_(whole)
                continue
            share = [shares.get(unit, 1.0) for unit, _ in each.places[dim]]
            factors = torch.tensor(share, dtype=torch.float64, device=whole.device)
            whole = (whole * laid_along(factors, dim, whole.dim())).to(whole.dtype)
            each.layer.fill_(each.key, whole)
        for name, layer in prepared.layers.items():
            own = replace(layer, writable=False)
            set_start_values_(own, cancelled=prepared.hidden_on(name))


def _chosen(prepared: PreparedEdit) -> tuple[dict[Unit, Unit], dict[Unit, float]]:
    """Of each new unit the old one that it copies; the shares of a unit and its copies."""
    copies: dict[Unit, list[Unit]] = {}
    likes: dict[Unit, Unit] = {}
    for group, new in prepared.hidden.items():
        for unit in new:
            nth = int(torch.randint(new[0].nth, (), generator=prepared.generator))
            old = likes[unit] = Unit(group, nth)
            copies.setdefault(old, [old]).append(unit)
    shares: dict[Unit, float] = {}
    for alike in copies.values():
        total = len(alike) * (len(alike) + 1) / 2
        shares.update((unit, (len(alike) - n) / total) for n, unit in enumerate(alike))
    return likes, shares
