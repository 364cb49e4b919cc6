"""A state_dict from before a growth says that it is, and the ways to its network are true."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical
from torch import Tensor, nn

import splitgrow
from splitgrow.errors import SplitGrowWarning

X = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).double()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stem(x)).relu())


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return splitgrow.growable(Net().double(), X)


def train(model: Any, steps: int = 3) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()


def moments(model: Any) -> list[tuple[Any, Tensor]]:
    """The state_dict and the outputs before a growth, after it, and after the next generation."""
    found = []

    def keep() -> None:
        model.eval()
        found.append((copy.deepcopy(model.state_dict()), model(X).detach()))

    train(model)
    keep()
    model.expand_layer("stem", 2)
    train(model)
    keep()
    model.next_generation()
    model.insert_layer("stem", "residual")
    train(model)
    keep()
    model.expand_layer("stem", 2)
    train(model)
    return found


def loading(model: Any, state: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model.load_state_dict(state)
    assert all(issubclass(one.category, SplitGrowWarning) for one in told)
    return [str(one.message) for one in told if "is from before" in str(one.message)]


@pytest.mark.parametrize(("moment", "edits"), [(0, 3), (1, 2)])
@pytest.mark.parametrize("inside", [False, True])
def test_it_warns_and_at_and_merge_give_the_network_that_was_saved(moment, edits, inside):
    model = network()
    state, outputs = moments(model)[moment]
    if inside:
        state = {f"0.{name}": value for name, value in state.items()}
    (told,) = loading(nn.Sequential(model) if inside else model, state)
    assert f"before {edits} of the 3 edits" in told
    assert f"model.at({moment})" in told
    model.eval()
    with model.at(moment):
        assert_identical(model(X), outputs)
    assert_equal(splitgrow.merge(model, moment)(X).detach(), outputs)
    assert (model(X) - outputs).abs().max() > 1e-3  # as the warning says, it is another network


def test_a_state_from_within_a_generation_sends_to_a_fresh_model():
    model = network()
    state, outputs = moments(model)[2]
    (told,) = loading(model, state)
    assert "load it into a fresh model" in told
    fresh = network(1)
    assert loading(fresh, state) == []
    assert_equal(fresh.eval()(X), outputs)


def test_control_states_of_today_or_of_later_and_those_that_lack_nothing_load_without_a_word():
    model = network()
    moments(model)
    assert loading(model, copy.deepcopy(model.state_dict())) == []
    assert loading(network(1), model.state_dict()) == []
    tensors = {k: v for k, v in model.state_dict().items() if k != "_extra_state"}
    assert loading(model, tensors) == []  # the journal is lost, but every block is there


def test_a_generation_that_was_closed_without_a_growth_comes_back() -> None:
    model = network()
    train(model)
    model.next_generation()
    model.eval()
    fresh = network(1).eval()
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    assert fresh.generation == 1
    assert not any(parameter.requires_grad for parameter in fresh.parameters())
    with fresh.at(0):
        assert_identical(fresh(X), model(X))


@pytest.mark.parametrize("journal", [True, False])
def test_tensors_alone_say_nothing_of_generations(journal: bool) -> None:
    model = network()
    model.next_generation()
    state = {k: v for k, v in model.state_dict().items() if journal or k != "_extra_state"}
    model.load_state_dict(state)
    assert model.generation == 1
    assert not any(parameter.requires_grad for parameter in model.parameters())
    nn.Sequential(model).load_state_dict({f"0.{name}": value for name, value in state.items()})
    assert model.generation == 1
