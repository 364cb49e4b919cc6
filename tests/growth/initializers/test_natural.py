"""New units and helpers that lower the loss most, against the closed form for linear layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.growth.initializers.conjugate_gradients import conjugate_gradients
from splitgrow.growth.initializers.natural import Fisher, Tiny


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
    """TINY's leading two inputs, the singular vectors of S^(-1/2) N, and the best weights on them.

    The latter are those of least squares, by which the new units follow the whole gradient.
    """
    out = model(x)
    (whole,) = torch.autograd.grad((out - y).square().sum() / 64, out)
    back = whole
    if project:
        read = model[0](x).detach()
        back = back - read @ torch.linalg.lstsq(read, back).solution
    values, vectors = torch.linalg.eigh(x.T @ x)
    root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
    left, _, _ = torch.linalg.svd(root @ (x.T @ -back))
    ins = (root @ left[:, :2]).T
    return ins, torch.linalg.lstsq(x @ ins.T, -whole).solution


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


@pytest.mark.parametrize("way", ["autocast", "compiled", "compiled in place"])
def test_the_loss_falls_as_it_is_run(way: str) -> None:
    """Under autocast, where outputs are of another type, and compiled, where hooks are not called.

    It then runs compiled as before.
    """
    torch.manual_seed(0)
    x, y = torch.randn(32, 3, 12, 12), torch.randn(32, 4)
    model: Any = splitgrow.growable(Images(), x)
    run = torch.compile(model, backend="eager") if way == "compiled" else model
    if way == "compiled in place":
        model.compile(backend="eager")
    compiled = vars(model).get("_compiled_call_impl")

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            return (run(x).float() - y).square().mean()

    before = float(loss().detach())
    for initializer in (Tiny(), Fisher(2)):
        edit = model.expand_layer("a", 3, initializer=initializer, loss=loss, freeze=False)
        assert edit.loss[1] <= edit.loss[0]
    assert float(loss().detach()) < before - 1e-3
    assert vars(model).get("_compiled_call_impl") is compiled


def test_helpers_stay_zero_where_no_size_lowers_the_loss() -> None:
    """At a minimum: the gradient is zero."""
    model, x, _ = linear()
    y = model(x).detach()
    wanted = model(x)
    closure = lambda: (model(x) - y).square().sum()  # noqa: E731
    model.expand_layer(0, 2, initializer="tiny", loss=closure, freeze=False)
    assert torch.allclose(model(x), wanted, rtol=1e-12, atol=1e-12)


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(5, 2)
        self.rnn = kind(4, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.rnn(self.a(x))[0])


@pytest.mark.parametrize("layer", ["a", "rnn"])
@pytest.mark.parametrize("initializer", ["tiny", "fisher"])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_layer_is_refused_with_the_reason_and_the_way_out(
    kind: type[nn.RNNBase], initializer: str, layer: str
) -> None:
    """Whether it reads the layer that grows or grows itself; the model stays as it was."""
    torch.manual_seed(0)
    x = torch.randn(4, 5, 3)
    model: Any = splitgrow.growable(Recurrent(kind), x)
    loss = lambda: model(x).square().mean()  # noqa: E731
    reason = f"`rnn` is a {kind.__name__}, which takes all its time steps in one call of torch"
    with unchanged(model), pytest.raises(ValueError, match=reason):
        model.expand_layer(layer, 2, initializer=initializer, loss=loss)
    model.expand_layer(layer, 2, initializer="gradient", loss=loss)


def test_a_layer_that_the_loss_does_not_run_is_refused() -> None:
    model, x, _ = linear()
    with pytest.raises(ValueError, match="the loss does not run `1`"):
        model.expand_layer(0, 2, initializer="tiny", loss=lambda: model[0](x).square().mean())


def test_a_loss_on_another_batch_each_time_is_told() -> None:
    model, x, y = linear()
    turns = iter(range(10_000))

    def loss() -> Tensor:
        return (model(x * (1 + next(turns) % 5)) - y).square().mean()

    with pytest.warns(splitgrow.SplitGrowWarning, match="it must use the same batch each time"):
        model.expand_layer(0, 2, initializer="tiny", loss=loss, freeze=False)


def test_conjugate_gradients_solve() -> None:
    generator = torch.manual_seed(0)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(6)
    right = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    found = conjugate_gradients(lambda tensor: matrix @ tensor, right, steps=40)
    assert torch.allclose(found, torch.linalg.solve(matrix, right), rtol=1e-2, atol=1e-3)
    assert not conjugate_gradients(lambda tensor: matrix @ tensor, torch.zeros(3, 2)).any()
