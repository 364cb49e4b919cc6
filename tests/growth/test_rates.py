"""The learning rates of new parameters: which a call may ask for, and how a group holds them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

import splitgrow
from splitgrow.growth.rates import AS_THE_GROUP, RATES, Rates, rates_as_data, rates_in

X = torch.ones(1, 3, dtype=torch.float64)


def network() -> Any:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    return splitgrow.growable(net, X)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"lr_scale": True}, TypeError),
        ({"lr_scale": "half"}, TypeError),
        ({"lr_scale": 0}, ValueError),
        ({"lr_scale": float("nan")}, ValueError),
        ({"lr_scale": float("inf")}, ValueError),
        ({"warmup": 1.5}, TypeError),
        ({"warmup": True}, TypeError),
        ({"warmup": -1}, ValueError),
    ],
)
def test_what_is_no_rate_is_refused_by_its_name(asked: dict[str, Any], error: type[Exception]):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(error, match=next(iter(asked))):
        model.expand_layer("0", 1, optimizer=optimizer, **asked)
    assert not splitgrow.handle(model).edits


def test_a_rate_rises_to_its_scale_in_as_many_steps_and_is_the_groups_then():
    rate, factors = Rates(0.5, 4), []
    for _ in range(6):
        factors.append(rate.factor)
        rate = rate.after_step()
    assert factors == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5]
    assert rate.own
    assert not Rates(1.0, 4, 4).own


def test_rates_are_plain_data_and_come_back():
    rates = [Rates(0.5, 4, 2), AS_THE_GROUP, Rates(2.0)]
    data = json.loads(json.dumps(rates_as_data(rates)))
    assert rates_in({"params": [1, 2, 3], RATES: data}) == rates
    assert rates_as_data([AS_THE_GROUP, Rates(1.0, 3, 3)]) is None


@pytest.mark.parametrize(
    "data",
    [
        "fast",
        [None],
        [None, "fast"],
        [None, {"scale": 1.0}],
        [None, {"scale": -1.0, "warmup": 0, "steps": 0}],
        [None, {"scale": 1.0, "warmup": 2, "steps": 3}],
        [None, {"scale": 1.0, "warmup": 2, "steps": "1"}],
    ],
)
def test_data_that_say_no_rates_are_refused(data: Any):
    with pytest.raises(splitgrow.OptimizerError, match=RATES):
        rates_in({"params": [1, 2], RATES: data})


@pytest.mark.parametrize("asked", [{"lr_scale": 0.5}, {"warmup": 3}])
def test_rates_without_an_optimizer_are_refused(asked: dict[str, Any]):
    model = network()
    with pytest.raises(ValueError, match="optimizer="):
        model.expand_layer("0", 1, **asked)
    assert not splitgrow.handle(model).edits


def test_rates_relative_to_none_are_refused():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    optimizer.param_groups[0]["lr"] = None  # as Adafactor has it where it chooses by itself
    with pytest.raises(splitgrow.OptimizerError, match="learning rate of a param group"):
        model.expand_layer("0", 1, optimizer=optimizer, lr_scale=0.5)
    assert not splitgrow.handle(model).edits


def test_an_optimizer_that_runs_no_hooks_is_refused():
    class Silent(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return None

    model = network()
    optimizer = Silent(model.parameters(), 0.1)
    Silent.step = lambda self, closure=None: None  # type: ignore[method-assign, assignment]
    with pytest.raises(splitgrow.OptimizerError, match="does not run"):
        model.expand_layer("0", 1, optimizer=optimizer, warmup=2)
    model.expand_layer("0", 1, optimizer=optimizer)
