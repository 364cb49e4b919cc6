"""Criteria of activations against hooks, and against least squares without a unit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import CASES
from helpers import randomise
from scored_models import Gated, small
from scoring import assert_close, made_growable, scores_of
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.pruning import Activation, Reconstruction

DAMPING = 1e-2


class Net(nn.Module):
    """Two readers of one stream, units of four positions each, and groups of convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.side, self.main = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 6, 1, bias=False)
        self.norm = nn.BatchNorm2d(3)
        self.halves = nn.Conv2d(6, 4, 1, groups=2)
        self.flat = nn.Linear(7 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.halves(self.main(x).relu()).relu()
        return self.flat(torch.cat([self.norm(self.side(x)).relu(), y], 1).flatten(1))


def net() -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(Net()).double().eval(), x(0))


def x(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(40, 2, 2, 2, generator=generator, dtype=torch.float64)


BATCHES = [(x(1),), (x(2),)]


def read_by(model: Any) -> dict[str, Tensor]:
    """The rows that each layer reads, over all batches."""
    seen: dict[str, list[Tensor]] = {}
    twin = copy.deepcopy(model)
    for name, module in twin.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            rows = seen.setdefault(name, [])
            dim = -1 if isinstance(module, nn.Linear) else 1
            module.register_forward_pre_hook(
                lambda _, args, rows=rows, dim=dim: rows.append(
                    args[0].detach().movedim(dim, -1).flatten(0, -2)
                )
            )
    with torch.no_grad():
        for batch in BATCHES:
            twin(*batch)
    return {name: torch.cat(rows) for name, rows in seen.items()}


STATISTICS = {
    "rms": lambda rows: rows.square().mean(0).sqrt(),
    "std": lambda rows: rows.std(0, correction=0),
    "nonzero": lambda rows: (rows != 0).double().mean(0),
}


@pytest.mark.parametrize("statistic", STATISTICS)
def test_an_activation_is_a_statistic_of_the_rows_that_readers_see(statistic: Any) -> None:
    model = net()
    rows = {name: STATISTICS[statistic](own) for name, own in read_by(model).items()}
    scores = scores_of(model, Activation(statistic), BATCHES)
    assert_close(scores["stem", "0"], (rows["side"] + rows["main"]) / 2)
    assert_close(scores["side", "0"], rows["flat"][:12].view(3, 4).mean(1))
    found = [scores[key] for key in scores if key[0] == "main"]
    assert_close(torch.cat(found), rows["halves"].view(2, 3).mean(0), 1e-9)
    others = [STATISTICS[name] for name in STATISTICS if name != statistic]  # control
    for other in others:
        flat = other(read_by(model)["flat"])[:12].view(3, 4).mean(1)
        assert not torch.allclose(scores["side", "0"], flat, rtol=1e-3)


def left_over(
    rows: Tensor, weight: Tensor, gone: list[int], *, shifts: bool, damping: float = DAMPING
) -> float:
    """The squared error of a layer's best weights without some inputs, by least squares.

    Args:
        rows: (samples, inputs).
        weight: (outputs, inputs).
        gone: The inputs that go.
        shifts: Whether a bias can be fitted, too.
        damping: The weight, relative to the mean second moment, at which other weights count.
    """
    rows = rows - rows.mean(0) if shifts else rows
    ridge = (damping * rows.square().mean()) ** 0.5 * torch.eye(rows.shape[1]).double()
    data = torch.cat([rows / len(rows) ** 0.5, ridge])
    target = data @ weight.T
    kept = [at for at in range(rows.shape[1]) if at not in gone]
    best = torch.linalg.lstsq(data[:, kept], target).solution
    return float((data[:, kept] @ best - target).square().sum())


def test_reconstruction_is_what_least_squares_leave_over() -> None:
    model = net()
    rows = read_by(model)
    scores = scores_of(model, Reconstruction(DAMPING), BATCHES)
    weights = {name: model.get_submodule(name).weight.detach() for name in rows}
    expected = [
        left_over(rows["side"], weights["side"].flatten(1), [at], shifts=True)
        + left_over(rows["main"], weights["main"].flatten(1), [at], shifts=False)
        for at in range(4)
    ]
    assert_close(scores["stem", "0"], torch.tensor(expected).double(), 1e-6)
    expected = [
        left_over(rows["flat"], weights["flat"], [*range(4 * at, 4 * at + 4)], shifts=True)
        for at in range(3)
    ]
    assert_close(scores["side", "0"], torch.tensor(expected).double(), 1e-6)
    alone = [  # control: position by position, the other three of a unit make up for each
        sum(left_over(rows["flat"], weights["flat"], [4 * at + n], shifts=True) for n in range(4))
        for at in range(3)
    ]
    assert not torch.allclose(scores["side", "0"], torch.tensor(alone).double(), rtol=1e-2)
    halves = weights["halves"].flatten(1)
    expected = [
        sum(
            left_over(own, weight, [at], shifts=True)
            for own, weight in zip(rows["halves"].chunk(2, 1), halves.chunk(2), strict=True)
        )
        for at in range(3)
    ]
    found = torch.cat([scores[key] for key in scores if key[0] == "main"])
    assert_close(found, torch.tensor(expected).double(), 1e-6)


def test_a_unit_that_another_one_repeats_costs_nothing() -> None:
    model = net()
    with torch.no_grad():
        model.stem.weight[2], model.stem.bias[2] = model.stem.weight[0], model.stem.bias[0]
    scores = scores_of(model, Reconstruction(1e-9), BATCHES)["stem", "0"]
    assert float(scores[[0, 2]].max()) < 1e-6 * float(scores[[1, 3]].min())


def test_groups_that_no_weights_read_have_no_scores() -> None:
    model = small(Gated())
    batches = [(torch.randint(7, (3, 5)),)]
    for criterion in (Activation(), Reconstruction()):
        assert ("gate", "0") not in scores_of(model, criterion, batches)


def test_runs_by_batches_alone_take_tensors_arguments_and_names() -> None:
    model = net()
    expected = scores_of(model, Activation(), [BATCHES[0]])["stem", "0"]
    for batch in (x(1), (x(1),), [x(1)], {"x": x(1)}):
        found = scores_of(model, Activation(), [batch], loss=None)
        assert torch.equal(found["stem", "0"], expected)
    with (
        unchanged(model),
        pytest.raises(TypeError, match=r"called with a batch .*`loss`"),
    ):
        scores_of(model, Activation(), [(x(1), torch.zeros(40))], loss=None)
    with unchanged(model), pytest.raises(ValueError, match="give `batches`"):
        scores_of(model, Reconstruction(), [])


def test_the_parameters_of_criteria_are_checked() -> None:
    with pytest.raises(ValueError, match="statistic must be one of rms, std, nonzero"):
        Activation("mean")  # type: ignore[arg-type]
    for damping in (0, -1.0, float("nan"), float("inf"), True, "1"):
        with pytest.raises(ValueError, match="damping must be a positive number"):
            Reconstruction(damping)  # type: ignore[arg-type]
    assert str(Activation("std")) == "Activation('std')"
    assert str(Reconstruction()) == "Reconstruction(damping=0.001)"


def test_a_failing_run_leaves_no_hook() -> None:
    model = made_growable(CASES[1])
    with unchanged(model), pytest.raises(ZeroDivisionError):
        scores_of(model, Activation(), [CASES[1].inputs()], loss=lambda model, batch: 1 / 0)
