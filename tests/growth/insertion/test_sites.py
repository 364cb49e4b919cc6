"""Insertion where forward calls functions between a layer and the next one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, randomise
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow

IMAGE = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Written(nn.Module):
    """A convolution, functions, and a layer that reads what they make."""

    def __init__(self, between: Callable[[Any, Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.side = nn.Conv2d(3, 6, 1)
        self.fc1, self.fc2 = nn.Linear(features, 8), nn.Linear(8, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(self.between(self, x))
        return self.fc2(h.relu())


def flattened(m: Any, x: Tensor) -> Tensor:
    return m.conv(x).flatten(1)


def activated(m: Any, x: Tensor) -> Tensor:
    return F.relu(m.conv(x)).flatten(1)


def with_norm(m: Any, x: Tensor) -> Tensor:
    return F.relu(m.norm(m.conv(x))).flatten(1)


def pooled(m: Any, x: Tensor) -> Tensor:
    return F.silu(m.conv(x)).mean((2, 3))


def by_method(m: Any, x: Tensor) -> Tensor:
    return m.conv(x).relu().view(len(x), -1)


def read_twice(m: Any, x: Tensor) -> Tensor:
    h = m.conv(x).tanh()
    return (h + h.flip(2)).mean((2, 3))


def joined(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.conv(x).relu(), m.side(x).relu()], 1).mean((2, 3))


def added(m: Any, x: Tensor) -> Tensor:
    return (m.conv(x).relu() + m.side(x).relu()).mean((2, 3))


def scaled(m: Any, x: Tensor) -> Tensor:
    return (m.conv(x) * 2).flatten(1)


def in_place(m: Any, x: Tensor) -> Tensor:
    return F.relu_(m.conv(x)).amax((2, 3))


FORWARDS = {
    flattened: 96,
    activated: 96,
    with_norm: 96,
    pooled: 6,
    by_method: 96,
    read_twice: 6,
    joined: 12,
    added: 6,
    scaled: 96,
    in_place: 6,
}


def made(between: Callable[[Any, Tensor], Tensor]) -> Any:
    torch.manual_seed(0)
    model = randomise(Written(between, FORWARDS[between])).double().eval()
    return splitgrow.growable(model, IMAGE)


def check_exact_and_alive(model: Any, insert: Callable[[], Any]) -> None:
    before = model(IMAGE).detach()
    insert()
    assert_equal(model(IMAGE), before)
    with torch.no_grad():
        for p in model.generation_parameters():
            p.add_(torch.randn_like(p) * 0.3)
    assert (model(IMAGE) - before).abs().max() > 1e-4  # what was inserted is reached
    with model.at(0):
        assert_identical(model(IMAGE).detach(), before)
    assert_equal(splitgrow.merge(model)(IMAGE), model(IMAGE))


@pytest.mark.parametrize("kind", ["residual", "gate"])
@pytest.mark.parametrize("between", FORWARDS, ids=lambda f: f.__name__)
def test_something_is_inserted_behind_a_layer_that_a_function_follows(
    between: Callable[[Any, Tensor], Tensor], kind: str
) -> None:
    model = made(between)
    check_exact_and_alive(model, lambda: model.insert_layer("conv", kind))


@pytest.mark.parametrize("between", FORWARDS, ids=lambda f: f.__name__)
def test_an_identity_without_activation_is_exact_behind_any_layer(
    between: Callable[[Any, Tensor], Tensor],
) -> None:
    model = made(between)
    check_exact_and_alive(
        model, lambda: model.insert_layer("conv", "identity", activation=nn.Identity())
    )


@pytest.mark.parametrize("kind", ["residual", "gate"])
@pytest.mark.parametrize("between", FORWARDS, ids=lambda f: f.__name__)
def test_an_edge_may_lead_through_functions(
    between: Callable[[Any, Tensor], Tensor], kind: str
) -> None:
    model = made(between)
    edit = model.plan_insertion(("conv", "fc1"), kind)
    assert (edit.inserted[0].host, edit.inserted[0].before) == ("fc1", True)
    check_exact_and_alive(model, lambda: model.insert_layer(("conv", "fc1"), kind))


def test_an_identity_with_relu_is_exact_behind_a_flattened_relu() -> None:
    model = made(activated)
    check_exact_and_alive(model, lambda: model.insert_layer(("conv", "fc1"), "identity"))


def test_an_identity_with_relu_is_refused_before_the_relu_with_what_is_possible() -> None:
    model = made(pooled)
    with pytest.raises(splitgrow.InsertionError, match="kind='residual'"):
        model.insert_layer("conv", "identity")


def test_the_place_is_behind_the_norm_where_the_activation_is_a_function() -> None:
    model = made(with_norm)
    assert model.plan_insertion("conv").inserted[0].host == "norm"


def test_an_edge_that_leads_through_another_layer_is_refused() -> None:
    model = made(activated)
    with pytest.raises(splitgrow.InsertionError, match=r"`fc2` does not read .* of `conv`"):
        model.insert_layer(("conv", "fc2"))
    with pytest.raises(splitgrow.InsertionError, match=r"`fc1` does not read .* of `fc2`"):
        model.insert_layer(("fc2", "fc1"))
    with pytest.raises(splitgrow.InsertionError, match="called 0 times"):
        model.insert_layer(("side", "fc1"))


def test_a_grown_model_that_never_ran_takes_insertions() -> None:
    for device in ("cpu", "meta"):
        net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(device)
        net = splitgrow.growable(net, torch.ones(1, 4, device=device))
        net.expand_layer("0", 2, check=False)
        assert net.insert_layer("0", "identity").inserted[0].width == 10
