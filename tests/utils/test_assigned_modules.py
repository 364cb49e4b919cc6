"""Modules that forward assigns do not change the model; a module that a user replaces does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, randomise
from torch import Tensor, nn

import splitgrow

X = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Assigning(nn.Module):
    """Two layers, and between them something that assigns modules."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor], **also: nn.Module) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        for name, module in also.items():
            self.add_module(name, module)
        self.between, self.calls = between, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.a(x)))


class Scaled(nn.Module):
    """Has settings of its own, and no tensors."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def relu(m: Any, h: Tensor) -> Tensor:
    m.relu = nn.ReLU()
    return m.relu(h)


def dropout(m: Any, h: Tensor) -> Tensor:
    m.drop = nn.Dropout(0.5).train(m.training)
    return m.drop(h).tanh()


def chain(m: Any, h: Tensor) -> Tensor:
    m.acts = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh(), nn.Identity()))
    return m.acts(h)


def listed(m: Any, h: Tensor) -> Tensor:
    m.acts = nn.ModuleList([nn.ReLU(), nn.Tanh()])
    for act in m.acts:
        h = act(h)
    return h


def own_type(m: Any, h: Tensor) -> Tensor:
    m.scaled = Scaled(2.0)
    return m.scaled(h).tanh()


def numbered(m: Any, h: Tensor) -> Tensor:
    m.calls += 1
    act = nn.ReLU()
    m.add_module(f"act{m.calls}", act)
    return act(h)


def numbered_chain(m: Any, h: Tensor) -> Tensor:
    m.calls += 1
    acts = nn.Sequential(nn.ReLU(), nn.Tanh())
    m.add_module(f"acts{m.calls}", acts)
    return acts(h)


def lazily(m: Any, h: Tensor) -> Tensor:
    if not hasattr(m, "act"):
        m.act = nn.Tanh()
    return m.act(h)


def created_and_deleted(m: Any, h: Tensor) -> Tensor:
    m.passing = nn.Identity()
    h = m.passing(h).tanh()
    del m.passing
    return h


def cache(m: Any, h: Tensor) -> Tensor:
    m._cache = nn.Module()
    m._cache.last = tuple(h.shape[:1])
    return h.tanh()


def buffer(m: Any, h: Tensor) -> Tensor:
    if "scale" not in m._buffers:
        m.register_buffer("scale", torch.full((1,), 2.0, dtype=h.dtype))
    return (m.scale * h).tanh()


def with_buffer(m: Any, h: Tensor) -> Tensor:
    if not hasattr(m, "masked"):
        m.masked = Masked().to(h.dtype)
    return m.masked(h).tanh()


def in_a_child(m: Any, h: Tensor) -> Tensor:
    m.child.act = nn.ReLU()
    return m.child.act(h)


def growable(between: Callable[[Any, Tensor], Tensor], **also: nn.Module) -> Any:
    torch.manual_seed(0)
    model = randomise(Assigning(between, **also).double().eval())
    return splitgrow.growable(model, X)


PATTERNS = (
    *(relu, dropout, chain, listed, own_type, numbered, numbered_chain, lazily, cache),
    *(created_and_deleted, buffer, with_buffer),
)


@pytest.mark.parametrize("before", [0, 1, 2], ids=["never called", "called once", "called twice"])
@pytest.mark.parametrize("between", PATTERNS, ids=lambda f: f.__name__)
def test_what_forward_assigns_is_no_change(
    between: Callable[[Any, Tensor], Tensor], before: int
) -> None:
    torch.manual_seed(0)
    model: Any = randomise(Assigning(between).double().eval())
    for _ in range(before):
        model(X)
    model = splitgrow.growable(model, X)
    expected = model(X).detach()
    model.expand_layer("a", 4)
    assert_equal(model(X), expected)
    model(X)
    model.expand_layer("a", 2)
    assert_equal(model(X), expected)
    with model.at(0):
        assert_identical(model(X).detach(), expected)
    assert_equal(splitgrow.merge(model)(X), expected)
    copied = copy.deepcopy(model)
    copied(X)
    copied.expand_layer("a", 1)
    assert_equal(copied(X), expected)


def test_what_forward_assigns_in_a_child_is_no_change() -> None:
    model = growable(in_a_child, child=nn.Module())
    expected = model(X).detach()
    model.expand_layer("a", 4)
    model(X)
    model.expand_layer("a", 4)
    assert_equal(model(X), expected)


def test_an_activation_that_was_there_and_is_made_anew_is_no_change() -> None:
    model = growable(relu, relu=nn.ReLU())
    expected = model(X).detach()
    for _ in range(2):
        model.expand_layer("a", 4)
        assert_equal(model(X), expected)


def test_analysing_again_after_a_call_keeps_closed_generations() -> None:
    model = growable(relu)
    expected = model(X).detach()
    model.expand_layer("a", 4)
    model(X)
    splitgrow.growable(model, X)
    with model.at(0):
        assert_identical(model(X).detach(), expected)


def plain(m: Any, h: Tensor) -> Tensor:
    h = m.act(h)
    return m.rest(h)


def swap_activation(m: Any) -> None:
    m.act = nn.Softmax(1)


def swap_setting(m: Any) -> None:
    m.act = nn.LeakyReLU(0.3)


def swap_in_a_chain(m: Any) -> None:
    m.rest[0] = nn.Softmax(1)


def append_to_a_chain(m: Any) -> None:
    m.rest.append(nn.Softmax(1))


def delete_from_a_chain(m: Any) -> None:
    del m.rest[1]


def swap_chain(m: Any) -> None:
    m.rest = nn.Sequential(nn.Tanh(), nn.Softmax(1))


def add_layer(m: Any) -> None:
    m.extra = nn.Linear(2, 2)


def add_activation(m: Any) -> None:
    m.extra = nn.Softmax(1)


def swap_layer(m: Any) -> None:
    m.a = nn.Linear(3, 8).double()


def swap_own_type(m: Any) -> None:
    m.rest[1] = Scaled(3.0)


def nothing_there(m: Any) -> None:
    m.act = None


SWAPS = (
    *(swap_activation, swap_setting, swap_in_a_chain, append_to_a_chain, delete_from_a_chain),
    *(swap_chain, add_layer, add_activation, swap_layer, swap_own_type, nothing_there),
)


@pytest.mark.parametrize("swap", SWAPS, ids=lambda f: f.__name__)
def test_what_a_user_changes_by_hand_is_noticed(swap: Callable[[Any], None]) -> None:
    model = growable(plain, act=nn.LeakyReLU(0.1), rest=nn.Sequential(nn.Tanh(), Scaled(2.0)))
    swap(model)
    with pytest.raises(splitgrow.StructureChangedError):
        model.expand_layer("a", 4)
    splitgrow.growable(model, X) if swap is not nothing_there else None


@pytest.mark.parametrize("between", [relu, lazily], ids=lambda f: f.__name__)
def test_another_activation_in_the_place_of_what_forward_assigns_is_noticed(
    between: Callable[[Any, Tensor], Tensor],
) -> None:
    model = growable(between)
    model(X)
    setattr(model, "relu" if between is relu else "act", nn.Softmax(1))
    with pytest.raises(splitgrow.StructureChangedError):
        model.expand_layer("a", 4)


def test_the_same_activation_put_there_by_hand_is_no_change() -> None:
    model = growable(plain, act=nn.LeakyReLU(0.1), rest=nn.Sequential(nn.Tanh(), Scaled(2.0)))
    expected = model(X).detach()
    model.act = nn.LeakyReLU(0.1)
    model.rest = nn.Sequential(nn.Tanh(), Scaled(2.0))
    model.expand_layer("a", 4)
    assert_equal(model(X), expected)
    model.insert_layer("act", "residual")  # at the module that is there now
    assert_equal(model(X), expected)


def test_a_norm_without_tensors_that_was_replaced_is_noticed() -> None:
    model = splitgrow.growable(
        nn.Sequential(nn.Conv1d(3, 8, 1), nn.InstanceNorm1d(8), nn.Conv1d(8, 2, 1)).double(),
        torch.randn(2, 3, 5).double(),
    )
    model[1] = nn.InstanceNorm1d(8)
    with pytest.raises(splitgrow.StructureChangedError):
        model.expand_layer("0", 4)
