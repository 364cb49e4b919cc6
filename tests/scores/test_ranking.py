"""Scores rank the layers of any model and leave it as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import tensors_of
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.scores import MEASURES, rank

X = torch.randn(24, 6, generator=torch.manual_seed(1), dtype=torch.float64)
Y = torch.randn(24, 3, generator=torch.manual_seed(2), dtype=torch.float64)


def mlp(*between: nn.Module) -> Any:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 10), *between, nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 3)]
    return splitgrow.growable(nn.Sequential(*layers).double(), X)


def squares(model: Any, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def of_any(model: Any, batch: Any) -> Tensor:
    """A loss for any network: the distance of its outputs from a ramp."""
    outputs = [t for t in tensors_of(model(*batch)) if t.is_floating_point()]
    parts = [
        (t - torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view(t.shape)).square().mean()
        for t in outputs
    ]
    return torch.stack(parts).sum()


@pytest.mark.parametrize("score", MEASURES)
def test_it_leaves_the_model_as_it_was(score: str) -> None:
    model = mlp(nn.BatchNorm1d(10), nn.Dropout(0.5))
    squares(model, (X, Y)).backward()
    with unchanged(model):
        ranking = rank(model, squares, [(X, Y)], score=score)
    assert [row.layer for row in ranking]
    assert {row.layer for row in ranking} == {"0", "3"}
    assert ranking.skipped.keys() == {"5"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_layer_that_can_grow_has_a_score_or_a_reason(case: Case) -> None:
    model: Any = splitgrow.growable(case.model(), case.inputs())
    growable = {layer.name for layer in model.layers if layer.growable}
    for score in ("gain", "rank"):
        ranking = rank(model, of_any, [case.inputs(3)], score=score)
        scored = {name for row in ranking for name in (row.layer, *row.group)}
        assert growable <= scored | {*ranking.skipped}
        assert all(row.score == row.score for row in ranking)
        numbers = [row.score for row in ranking]
        assert numbers == sorted(numbers, reverse=True)


def test_the_gradient_score_is_the_gradient_of_helpers_at_zero() -> None:
    """Against autograd on a plain network with a further, silent unit."""
    model = mlp()
    found = rank(model, squares, [(X, Y)], score="gradient", units=1, layers=["0"]).of("0")
    torch.manual_seed(0)
    row = nn.Linear(6, 1, dtype=torch.float64).weight.detach()
    row = row / row.norm() * model[0].weight.norm(dim=1).mean()
    read = torch.zeros(8, 1, dtype=torch.float64, requires_grad=True)
    hidden = torch.tanh(model[1](model[0](X)) + (X @ row.T) @ read.T)
    (model[3](hidden) - Y).square().mean().backward()
    assert read.grad is not None
    assert found == pytest.approx(float(read.grad.square().sum()), rel=1e-9)


def test_the_gain_score_is_the_decrease_of_the_best_step_in_the_layers_outputs() -> None:
    """Of one linear layer that reads random units: half of -G C^(-1) G, times the batch."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 3, bias=False)).double()
    model: Any = splitgrow.growable(net, X)
    out = model(X)
    (back,) = torch.autograd.grad((out - Y).square().mean(), out)
    read = model[0](X).detach()
    back = back - read @ torch.linalg.lstsq(read, back).solution
    # With as many units as inputs, all that X can do is within reach.
    best = X @ torch.linalg.lstsq(X, back).solution
    wanted = 0.5 * len(X) * float((best * back).sum())
    found = rank(model, squares, [(X, Y)], units=6).of("0")
    assert found == pytest.approx(wanted, rel=0.02)


def test_more_batches_are_averaged() -> None:
    model = mlp()
    halves = [(X[:12], Y[:12]), (X[12:], Y[12:])]
    one = rank(model, squares, [(X, Y)], score="gradient")
    two = rank(model, squares, halves, score="gradient")
    assert two.of("0") == pytest.approx(one.of("0"), rel=1e-9)


def test_a_layer_of_dead_units_comes_last_and_one_of_few_directions_too() -> None:
    model = mlp(nn.ReLU())
    with torch.no_grad():
        model[0].bias[:5] = -100.0
        model[2].weight[1:] = model[2].weight[:1]
    dead = rank(model, squares, [(X, Y)], score="dead")
    assert [(row.layer, row.score) for row in dead] == [("2", 0.0), ("0", 0.5)]
    ranks = rank(model, squares, [(X, Y)], score="rank")
    assert [row.layer for row in ranks] == ["0", "2"]
    assert ranks.of("2") == pytest.approx(1 / 8, rel=0.2)


def test_a_ranking_tells_its_cost_and_prints() -> None:
    ranking = rank(mlp(), squares, [(X, Y)], score="gain")
    assert ranking.passes == (6, 5)
    text = str(ranking)
    assert "6 forward and 5 backward passes" in text
    assert "0      10" in text
    assert "3 has no score: the model returns its units" in text
    with pytest.raises(KeyError, match="the model returns its units"):
        ranking.of("3")


def test_it_draws(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = rank(mlp(), squares, [(X, Y)]).draw(tmp_path / "scores.png")
    assert path.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"score": "gian"}, ValueError, "no score 'gian'; there are gain"),
        ({"units": 0}, ValueError, "units must be at least 1"),
        ({"units": 1.5}, TypeError, "units must be an int"),
        ({"batches": []}, ValueError, "batches is empty"),
        ({"layers": ["9"]}, ValueError, "no layer '9'"),
        ({"loss": None}, TypeError, "loss must be a function"),
        ({"loss": lambda model, batch: 1.0}, TypeError, "a tensor of one number"),
    ],
)
def test_wrong_arguments_are_refused(
    options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    model = mlp()
    given = {"loss": squares, "batches": [(X, Y)], **options}
    with unchanged(model), pytest.raises(error, match=reason):
        rank(model, given.pop("loss"), given.pop("batches"), **given)
    with pytest.raises(splitgrow.SplitGrowError, match="not growable yet"):
        rank(nn.Linear(2, 3), squares, [(X, Y)])
