"""New units, or helpers, such that the others get the largest gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.growth.initializers.gradient import Gradient, GradMax


def linear() -> tuple[Any, Tensor, Tensor]:
    """Two linear layers without anything between, an input and a target."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 4)).double()
    x, y = torch.randn(64, 7, dtype=torch.float64), torch.randn(64, 4, dtype=torch.float64)
    return splitgrow.growable(net, x), x, y


def outside(vectors: Tensor, basis: Tensor) -> float:
    """The share of row vectors that lies outside of the span of a basis's rows."""
    inside = vectors @ torch.linalg.pinv(basis) @ basis
    return float((vectors - inside).norm() / vectors.norm())


def test_between_linear_layers_they_are_the_leading_singular_vectors() -> None:
    model, x, y = linear()
    out = model(x)
    (back,) = torch.autograd.grad((out - y).square().mean(), out)
    _, values, right = torch.linalg.svd(back.T @ x)
    size = model[0].weight.detach().norm(dim=1).mean()
    model.expand_layer(
        0,
        2,
        initializer=Gradient(passes=30),
        loss=lambda: (model(x) - y).square().mean(),
        freeze=False,
    )
    new = model[0][1].weight.detach()
    assert outside(new, right[:2]) < 1e-7
    assert outside(new, right[2:4]) > 0.9, "control: it is no matter which vectors"
    assert torch.allclose(new @ new.T, torch.eye(2, dtype=new.dtype) * size**2)
    model.zero_grad()
    (model(x) - y).square().mean().backward()
    assert model[1][1].weight.grad.norm() == pytest.approx(float(values[:2].detach().norm() * size))


class Strided(nn.Module):
    """Two convolutions with strides: the gradient leads through an auxiliary convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False)
        self.b = nn.Conv2d(4, 6, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x)).mean((2, 3))


def test_between_convolutions_they_are_those_of_the_auxiliary_convolution() -> None:
    """Its kernel has the size k1 + s1 (k2 - 1) = 7, and its stride is s1 s2 = 4."""
    torch.manual_seed(1)
    x, y = torch.randn(16, 3, 16, 16).double(), torch.randn(16, 6).double()
    model: Any = splitgrow.growable(Strided().double(), x)
    weight = torch.zeros(6, 3, 7, 7, dtype=torch.float64, requires_grad=True)
    out = model(x)
    (back,) = torch.autograd.grad((out - y).square().sum(), out)
    made = nn.functional.conv2d(x, weight, stride=4, padding=3).mean((2, 3))
    (gradient,) = torch.autograd.grad(made, weight, back)
    # Of the auxiliary weight at (k1 + s1 k2): a map from the first kernel to the second one.
    positions = [
        gradient[:, :, r : r + 3, c : c + 3].flatten(1) for r in (0, 2, 4) for c in (0, 2, 4)
    ]
    _, _, right = torch.linalg.svd(torch.cat(positions))
    model.expand_layer(
        "a",
        2,
        initializer=Gradient(passes=80),
        loss=lambda: (model(x) - y).square().sum(),
        freeze=False,
    )
    new = model.a[1].weight.detach().flatten(1)
    # The inner layer pads with zeros what the auxiliary one reads beyond its edge.
    assert outside(new, right[:2]) < 0.2
    assert outside(new, right[2:]) > 0.5, "control"


def test_helpers_get_a_larger_gradient_than_with_random_units() -> None:
    norms = []
    for initializer in ("zero", Gradient()):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(7, 50), nn.ReLU(), nn.Linear(50, 4))
        x, y = torch.randn(64, 7), torch.randn(64, 4)
        model: Any = splitgrow.growable(net, x)

        def loss(model: Any = model, x: Tensor = x, y: Tensor = y) -> Tensor:
            return (model(x) - y).square().mean()

        model.expand_layer(0, 4, initializer=initializer, loss=loss, freeze=False)
        loss().backward()
        norms.append(float(model[2][1].weight.grad.norm()))
    assert norms[1] > norms[0]


def test_units_of_zero_get_the_largest_gradient() -> None:
    """Of two linear layers the columns are the leading left singular vectors."""
    model, x, y = linear()
    out = model(x)
    (back,) = torch.autograd.grad((out - y).square().mean(), out)
    left, _, _ = torch.linalg.svd(back.T @ x)
    wanted = model(x)
    model.expand_layer(
        0,
        2,
        initializer=GradMax(passes=30),
        loss=lambda: (model(x) - y).square().mean(),
        freeze=False,
    )
    assert torch.allclose(model(x), wanted, rtol=1e-12, atol=1e-14)
    assert not model[0][1].weight.any()
    columns = model[1][1].weight.detach().T
    assert outside(columns, left[:, :2].T) < 1e-7
    assert outside(columns, left[:, 2:].T) > 0.9, "control"


@pytest.mark.parametrize(
    ("between", "reason"),
    [(nn.ReLU(), "would never learn.*ReLU"), (nn.Sigmoid(), "are not silent.*sigmoid")],
)
def test_units_of_zero_are_refused_where_they_are_dead_or_not_silent(
    between: nn.Module, reason: str
) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 5), between, nn.Linear(5, 4)).double()
    x = torch.randn(8, 7, dtype=torch.float64)
    model: Any = splitgrow.growable(net, x)
    with unchanged(model), pytest.raises(ValueError, match=reason):
        model.expand_layer(
            0, 2, initializer="gradmax", loss=lambda: model(x).square().mean(), freeze=False
        )


@pytest.mark.parametrize("name", ["gradient", "gradmax", "tiny", "fisher"])
def test_units_that_nothing_reads_are_refused(name: str) -> None:
    model, x, _ = linear()
    with unchanged(model), pytest.raises(ValueError, match="no layer with weights reads the new"):
        model.expand_layer(1, 2, initializer=name, loss=lambda: model(x).square().mean())


@pytest.mark.parametrize(
    ("passes", "error"), [(0, ValueError), (2.5, TypeError), (True, TypeError)]
)
@pytest.mark.parametrize("kind", [Gradient, GradMax])
def test_rounds_are_a_positive_int(kind: Any, passes: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="passes must be"):
        kind(passes=passes)
