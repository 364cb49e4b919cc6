"""New units and helpers that lower the loss most, against the closed form for linear layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import splitgrow
from splitgrow.growth.initializers.natural import Fisher, Tiny, conjugate_gradients


def outside(vectors: Tensor, basis: Tensor) -> float:
    """The share of row vectors that lies outside of the span of a basis's rows."""
    inside = vectors @ torch.linalg.pinv(basis) @ basis
    return float((vectors - inside).norm() / vectors.norm())


def linear() -> tuple[Any, Tensor, Tensor]:
    """Two linear layers, inputs of unlike sizes, and a target."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(7, 5, bias=False), nn.Linear(5, 4, bias=False)).double()
    x = torch.randn(64, 7, dtype=torch.float64) * torch.arange(1, 8)
    return splitgrow.growable(net, x), x, torch.randn(64, 4, dtype=torch.float64)


def closed_form(model: Any, x: Tensor, y: Tensor, *, project: bool) -> tuple[Tensor, Tensor]:
    """The leading two inputs and outputs of TINY: the singular vectors of S^(-1/2) N."""
    out = model(x)
    (back,) = torch.autograd.grad((out - y).square().sum() / 64, out)
    if project:
        read = model[0](x).detach()
        back = back - read @ torch.linalg.lstsq(read, back).solution
    values, vectors = torch.linalg.eigh(x.T @ x)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    left, _, right = torch.linalg.svd(root @ (x.T @ -back))
    return (root @ left[:, :2]).T, right[:2]


@pytest.mark.parametrize("project", [True, False])
def test_for_linear_layers_they_are_the_singular_vectors_of_the_bottleneck(project: bool) -> None:
    model, x, y = linear()
    ins, outs = closed_form(model, x, y, project=project)
    others, _ = closed_form(model, x, y, project=not project)
    model.expand_layer(
        0,
        2,
        initializer=Tiny(passes=40, project=project),
        loss=lambda: (model(x) - y).square().sum() / 64,
        freeze=False,
    )
    new, columns = model[0][1].weight.detach(), model[1][1].weight.detach().T
    assert outside(new, ins) < 0.02
    assert outside(columns, outs) < 0.02
    assert outside(new, others) > 0.05, "control: the projection matters"


def test_a_frozen_past_leaves_all_that_the_gradient_asks_to_new_units() -> None:
    model, x, y = linear()
    ins, _ = closed_form(model, x, y, project=False)
    closure = lambda: (model(x) - y).square().sum() / 64  # noqa: E731
    model.expand_layer(0, 2, initializer=Tiny(passes=40), loss=closure)
    assert outside(model[0][1].weight.detach(), ins) < 0.02


class Images(nn.Module):
    """Convolutions with a stride and groups, a norm and an activation between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6)
        self.b = nn.Conv2d(6, 6, 3, groups=6)
        self.c = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(nn.functional.gelu(self.norm(self.a(x))))).mean((2, 3))


@pytest.mark.parametrize("initializer", [Tiny(project=False), Fisher(project=False)], ids=repr)
def test_the_loss_falls_at_once(initializer: Any) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(32, 3, 12, 12).double(), torch.randn(32, 4).double()
    model: Any = splitgrow.growable(Images().double().eval(), x)

    def loss() -> Tensor:
        return (model(x) - y).square().mean()

    before = float(loss().detach())
    model.expand_layer("a", 3, initializer=initializer, loss=loss, freeze=False)
    assert float(loss().detach()) < before - 1e-3


def test_helpers_stay_zero_where_no_size_lowers_the_loss() -> None:
    """At a minimum: the gradient is zero."""
    model, x, _ = linear()
    y = model(x).detach()
    wanted = model(x)
    closure = lambda: (model(x) - y).square().sum()  # noqa: E731
    model.expand_layer(0, 2, initializer="tiny", loss=closure, freeze=False)
    assert torch.allclose(model(x), wanted, rtol=1e-12, atol=1e-12)


def test_a_reader_whose_best_step_is_not_known_is_refused() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.lstm = nn.Linear(3, 4), nn.LSTM(4, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.lstm(self.a(x))[0]

    x = torch.randn(4, 5, 3)
    model: Any = splitgrow.growable(Recurrent(), x)
    with pytest.raises(ValueError, match="`lstm` is not a Linear or a convolution"):
        model.expand_layer("a", 2, initializer="tiny", loss=lambda: model(x).square().mean())
    model.expand_layer("a", 2, initializer="gradient", loss=lambda: model(x).square().mean())


def test_conjugate_gradients_solve() -> None:
    generator = torch.manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(6)
    right = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    found = conjugate_gradients(lambda tensor: matrix @ tensor, right, steps=40)
    assert torch.allclose(found, torch.linalg.solve(matrix, right), rtol=1e-2, atol=1e-3)
    assert not conjugate_gradients(lambda tensor: matrix @ tensor, torch.zeros(3, 2)).any()
