"""The mixture of experts that splitgrow makes of a module."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import nn

import splitgrow
from splitgrow import MixtureOfExperts

X = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def made(**changes: Any) -> Any:
    torch.manual_seed(0)
    mlp = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)).double()
    options = {"features": 4, "experts": 5, "top_k": 2, **changes}
    return mlp, MixtureOfExperts(mlp, **options)


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_alike_experts_compute_what_one_of_them_does(top_k: int) -> None:
    mlp, mixture = made(top_k=top_k)
    assert (mixture(X) - mlp(X)).abs().max() < 1e-6  # shares are of single precision
    assert mixture(X[0, 0]).shape == mlp(X[0, 0]).shape
    assert mixture(X[:0]).shape == (0, 5, 4)


def test_it_is_the_average_of_the_chosen_experts_by_an_independent_sum() -> None:
    _, mixture = made()
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.add_(torch.randn_like(parameter))
    mixture.requires_grad_(False)
    for x, y in zip(X.flatten(0, 1), mixture(X).flatten(0, 1), strict=True):
        scores = mixture.router.weight @ x
        best = sorted(range(5), key=lambda n: -float(scores[n]))[:2]
        shares = torch.softmax(scores[best], 0)
        expected = sum(s * mixture.experts[n](x) for s, n in zip(shares, best, strict=True))
        assert (y - expected).abs().max() < 1e-5


def test_experts_and_router_learn_apart() -> None:
    _, mixture = made()
    optimizer = torch.optim.SGD(mixture.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        mixture(X).square().sum().backward()
        optimizer.step()
    weights = [expert[0].weight for expert in mixture.experts]
    assert (weights[0] - weights[1]).abs().max() > 1e-4
    assert all(p.grad is not None for p in mixture.parameters())


def test_it_grows_in_width_and_experts() -> None:
    _, mixture = made()
    model: Any = splitgrow.growable(nn.Sequential(nn.Linear(4, 4).double(), mixture).eval(), X)
    before = model(X)
    (found,) = model.mixtures()
    assert (found.path, found.count, found.chosen) == ("1", 5, 2)
    model.expand_experts(5)
    model.expand_layer("1.experts.0.0", 3)
    assert (model(X) - before).abs().max() < 1e-6
    merged: Any = splitgrow.merge(model)
    assert type(merged[1]) is MixtureOfExperts
    assert merged[1].top_k == 4
    assert_equal(merged(X), model(X))


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"experts": 1}, ValueError, r"experts \(=1\) must be at least 2"),
        ({"experts": 2.0}, TypeError, "experts must be an int"),
        ({"top_k": 0}, ValueError, "from 1 to the number of experts, 5"),
        ({"top_k": 6}, ValueError, "from 1 to the number of experts, 5"),
        ({"top_k": True}, TypeError, "top_k must be an int"),
    ],
)
def test_wrong_numbers_are_told(changes: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        made(**changes)
