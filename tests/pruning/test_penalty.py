"""The penalty is the group lasso over all weights with which a unit goes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import CASES
from helpers import assert_equal, randomise
from scored_models import Tied, small
from scoring import grown_at_once, made_growable
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.errors import FixedWidthError, SplitGrowError


def net() -> Any:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.Linear(6, 2)]
    model = randomise(nn.Sequential(*layers)).double()
    return splitgrow.growable(model, torch.ones(2, 2, 4, 4).double())


def by_hand(model: Any) -> Tensor:
    conv, one, two = model[0].weight, model[3].weight, model[4].weight
    first = conv.square().sum((1, 2, 3)) + one.view(6, 4, 4).square().sum((0, 2))
    second = one.square().sum(1) + two.square().sum(0)
    return (first.sqrt() * (18 + 24) ** 0.5).sum() + (second.sqrt() * (16 + 2) ** 0.5).sum()


def test_it_is_the_sum_of_norms_times_the_roots_of_the_numbers_of_weights() -> None:
    model, twin = net(), net()
    found = splitgrow.group_penalty(model)
    assert_equal(found, by_hand(twin))
    found.backward()
    by_hand(twin).backward()
    for name, parameter in twin.named_parameters():
        own = model.get_parameter(name).grad
        assert (own is None) == (parameter.grad is None)
        if own is not None:
            assert_equal(own, parameter.grad)
    with torch.no_grad():
        model[3].weight[0, 0] += 0.01
    assert not torch.equal(splitgrow.group_penalty(model), found)  # control


def test_some_layers_only() -> None:
    model = net()
    whole = splitgrow.group_penalty(model)
    parts = [splitgrow.group_penalty(model, layers=[name]) for name in ("0", 1)]
    assert_equal(sum(parts), whole)
    assert_equal(splitgrow.group_penalty(model, ignore=["0"]), parts[1])


def test_a_weight_that_layers_share_counts_once() -> None:
    model = small(Tied())
    table, inner = model.table.weight, model.inner.weight
    squares = table.square().sum(0) + inner.square().sum(0) + inner.square().sum(1)
    assert_equal(splitgrow.group_penalty(model), (squares.sqrt() * (7 + 4 + 4) ** 0.5).sum())


@pytest.mark.parametrize("name", ["residual", "u-net", "shuffled", "vision transformer", "tagger"])
@pytest.mark.parametrize("freeze", [False, True])
def test_a_grown_model_has_the_penalty_and_gradient_of_the_merged_one(
    name: str, freeze: bool
) -> None:
    case = next(case for case in CASES if case.name == name)
    model = grown_at_once(case, freeze=freeze)
    merged = splitgrow.growable(splitgrow.merge(copy.deepcopy(model)), case.inputs())
    ours, theirs = splitgrow.group_penalty(model), splitgrow.group_penalty(merged)
    assert_equal(ours, theirs)
    model.unfreeze() if freeze else None
    splitgrow.group_penalty(model).backward()
    theirs.backward()
    with torch.no_grad():
        for own in (model, merged):
            for parameter in own.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad, alpha=0.1)
    again = splitgrow.merge(copy.deepcopy(model))
    for key, parameter in splitgrow.merge(merged).named_parameters():
        assert_equal(again.get_parameter(key), parameter)


def test_dead_units_and_half_precision_have_finite_gradients() -> None:
    model = net()
    with torch.no_grad():
        model[0].weight[1] = 0
        model[3].weight.view(6, 4, 4)[:, 1] = 0
    splitgrow.group_penalty(model).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert not model[0].weight.grad[1].any()
    half = net().half()
    with torch.no_grad():
        half[3].weight.fill_(300)  # whose squares are more than half precision has
    found = splitgrow.group_penalty(half)
    assert found.dtype == torch.float32
    assert bool(found.isfinite())


def test_training_with_it_makes_units_small_which_then_go() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 1)).double()
    x = torch.randn(64, 3).double()
    y = (x @ torch.tensor([[1.0], [-1.0], [0.5]]).double()).tanh()
    scores = {}
    for strength in (0.0, 3e-3):
        torch.manual_seed(1)
        model = splitgrow.growable(copy.deepcopy(net), x[:2])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(300):
            loss = (model(x) - y).square().mean() + strength * splitgrow.group_penalty(model)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        norms = (model[0].weight.square().sum(1) + model[2].weight.square().sum(0)).sqrt().detach()
        scores[strength] = norms.sort().values
    weak = int((scores[3e-3] < 0.05).sum())
    assert weak >= 4 > int((scores[0.0] < 0.05).sum())
    before = model(x).detach()
    edit = model.prune(weak / 12, keep=0)
    assert model[0].out_features == 12 - weak
    assert edit.moved is not None
    assert edit.moved < 0.02
    torch.testing.assert_close(model(x).detach(), before, rtol=0.1, atol=0.02)


def test_bad_arguments_are_refused() -> None:
    model = net()
    with unchanged(model):
        with pytest.raises(TypeError, match="layers must be a list"):
            splitgrow.group_penalty(model, layers="0")
        with pytest.raises(TypeError, match="ignore must be a list"):
            splitgrow.group_penalty(model, ignore=0)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="no layer"):
            splitgrow.group_penalty(model, layers=["conv"])
        with pytest.raises(FixedWidthError, match="no layer may lose units"):
            splitgrow.group_penalty(model, ignore=["0", "3"])
    with pytest.raises(SplitGrowError, match="not growable yet"):
        splitgrow.group_penalty(nn.Linear(2, 2))
    model[3] = nn.Linear(16, 6).double()
    with pytest.raises(SplitGrowError, match="3"):
        splitgrow.group_penalty(model)
    with unchanged(made := made_growable(CASES[0])):
        splitgrow.group_penalty(made)
