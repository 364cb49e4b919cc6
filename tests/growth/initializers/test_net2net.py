"""Copies of units share what reads them, in shares that differ."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import assert_equal
from snapshots import unchanged
from torch import nn
from torch.optim.swa_utils import AveragedModel

import splitgrow
from splitgrow.growth.initializers import net2net


def trained() -> tuple[Any, torch.optim.Optimizer, torch.Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()
    x = torch.randn(9, 3, dtype=torch.float64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    model = splitgrow.growable(net, x)
    for _ in range(3):
        step(model, optimizer, x)
    return model.eval(), optimizer, x


def step(model: Any, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def test_units_are_copied_and_what_reads_the_old_ones_is_shared_out() -> None:
    model, optimizer, x = trained()
    wanted, old = model(x), copy.deepcopy(model)
    model.expand_layer("0", 4, initializer="net2net", freeze=False, optimizer=optimizer)
    assert_equal(model(x), wanted)
    plain = splitgrow.merge(model).requires_grad_(False)
    copies = [int((row == old[0].weight).all(1).nonzero()) for row in plain[0].weight[5:]]
    for tensor in (plain[0].bias, plain[1].running_mean, plain[1].running_var, plain[1].weight):
        assert torch.equal(tensor[5:], tensor[copies])
    shares = plain[3].weight / old[3].weight.detach()[:, [*range(5), *copies]]
    assert torch.equal(shares[0].round(decimals=9), shares[1].round(decimals=9))
    for unit in set(copies):
        alike = [unit, *(5 + n for n, of in enumerate(copies) if of == unit)]
        assert float(shares[0, alike].sum()) == pytest.approx(1)
        assert len(set(shares[0, alike].tolist())) == len(alike)
        assert shares[0, unit] == shares[0, alike].max()


def test_copies_part_at_the_first_step() -> None:
    model, optimizer, x = trained()
    model.expand_layer("0", 4, initializer="net2net", freeze=False, optimizer=optimizer)
    assert len(torch.unique(splitgrow.merge(model)[0].weight, dim=0)) == 5
    step(model, optimizer, x)
    assert len(torch.unique(splitgrow.merge(model)[0].weight, dim=0)) == 9


def test_control_copies_with_equal_shares_never_part(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = net2net._chosen

    def equal(prepared: Any) -> Any:
        likes, shares = chosen(prepared)
        homes = {unit: likes.get(unit, unit) for unit in shares}
        counts = [*homes.values()]
        return likes, {unit: 1 / counts.count(home) for unit, home in homes.items()}

    monkeypatch.setattr(net2net, "_chosen", equal)
    model, optimizer, x = trained()
    model.expand_layer("0", 4, initializer="net2net", freeze=False, optimizer=optimizer)
    for _ in range(3):
        step(model, optimizer, x)
    rows = splitgrow.merge(model)[0].weight
    assert len(torch.unique(rows.round(decimals=9), dim=0)) == 5


def test_a_frozen_past_is_refused_with_the_way_out() -> None:
    model, optimizer, _ = trained()
    reason = r"'net2net' changes values that exist, and those of .* are frozen or would be: grow "
    with unchanged(model, optimizer), pytest.raises(ValueError, match=reason):
        model.expand_layer("0", 2, initializer="net2net", optimizer=optimizer)
    model.expand_layer("0", 2, optimizer=optimizer)
    with unchanged(model, optimizer), pytest.raises(ValueError, match=r"after model\.unfreeze\(\)"):
        model.plan({"0": 2}, initializer="net2net", freeze=False)
    model.unfreeze()
    model.expand_layer("0", 2, initializer="net2net", freeze=False, optimizer=optimizer)


def test_averages_of_changed_values_begin_anew_with_the_new_ones() -> None:
    """Shares of an average and of the model's weights would not add up to one."""
    model, optimizer, x = trained()
    average = splitgrow.follow(AveragedModel(model), model)
    for _ in range(2):
        step(model, optimizer, x)
    edit = model.expand_layer("0", 4, initializer="net2net", freeze=False, optimizer=optimizer)
    assert edit.rewritten == ("3.0.weight",)
    named, kept = dict(model.named_parameters()), dict(average.module.named_parameters())
    assert torch.equal(kept["3.0.weight"], named["3.0.weight"])
    assert not torch.equal(kept["0.0.weight"], named["0.0.weight"])
    average.update_parameters(model)
