"""Two runs are the same up to the model's rounding, and a comparison leaves no trace."""

from __future__ import annotations

import math

import pytest
import torch
from snapshots import ANALYSIS, unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.analysis.output_comparison import (
    NotRunnableError,
    compared,
    difference,
    leading,
    outputs_of,
)
from splitgrow.utils.example_call import ExampleCall

INF, NAN = math.inf, math.nan


def t(*values: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (t(1, 2), t(1, 2), 0.0),
        (t(1, 3), t(1, 2), 0.5),
        (t(0, 0.5), t(0, 0), 0.5),
        (t(NAN, 1), t(NAN, 1), 0.0),
        (t(NAN, 1), t(0, 1), INF),
        (t(0, 1), t(NAN, 1), INF),
        (t(INF, 1), t(INF, 1), 0.0),
        (t(INF, 1), t(-INF, 1), INF),
        (t(1, 1), t(INF, 1), INF),
        (t(1, 2), t(1, 2, 3), INF),
        (t(1, 2), t(1, 2, dtype=torch.float32), INF),
        (torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5]), 0.25),
        (torch.tensor([True, True]), torch.tensor([True, False]), 0.5),
        (torch.tensor([1 + 1j]), torch.tensor([1 + 0j]), 1.0),
        (torch.empty(0), torch.empty(0), 0.0),
    ],
)
def test_differences_are_relative_and_odd_values_count(one, other, expected):
    assert difference([one], [other]) == expected


def test_another_number_of_tensors_is_a_difference():
    assert difference([t(1)], [t(1), t(1)]) == INF
    assert difference([], []) == 0.0


def test_the_leading_part_is_compared_where_more_came_behind():
    (part,) = leading([torch.arange(12).view(3, 4)], [torch.zeros(3, 2)])
    assert part.tolist() == [[0, 1], [4, 5], [8, 9]]
    (whole,) = leading([torch.zeros(2, 2)], [torch.zeros(3, 2)])
    assert whole.shape == (2, 2)


class Deep(nn.Module):
    """Magnifies differences by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor, self.layer = factor, nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) * self.factor).sin()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("factor", [1.0, 1e3, 1e5])
def test_the_tolerance_grows_with_what_rounding_does_to_the_model(factor, dtype):
    torch.manual_seed(0)
    model, x = Deep(factor).to(dtype), torch.randn(4, 16, dtype=dtype)
    expected = outputs_of(model, ExampleCall((x,)))
    unit = torch.finfo(dtype).eps
    off = [(model.layer(x).detach() * (1 + unit) * factor).sin()]
    noisy = lambda: outputs_of(model, ExampleCall((x,)), noisy=True)  # noqa: E731
    assert compared(off, expected, noisy).same
    base = 1e-12 if dtype == torch.float64 else 2e-5
    shift = max(100 * base, 1e4 * unit * factor)
    shifted = [expected[0] + shift]
    assert not compared(shifted, expected, lambda: [noisy()[0] + shift]).same


def test_noise_is_asked_for_only_where_it_is_needed():
    def never() -> list[Tensor]:
        raise AssertionError

    assert compared([t(1, 2)], [t(1, 2 + 1e-14)], never).same


def test_what_noise_alone_changes_cannot_be_told():
    found = compared([t(1.0)], [t(2.0)], lambda: [t(5.0)])
    assert found.same
    assert not found.checkable


class Tracing(nn.Module):
    """Leaves traces wherever a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm1d(3), nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(3))
        self.scale = nn.Parameter(torch.ones(3))
        self.calls, self.kept = 0, []

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.kept.append(x)
        with torch.no_grad():
            self.seen += x.mean(0)
            self.scale.mul_(1.5)
        x += 1
        return self.drop(self.norm(x)) * self.scale + torch.rand(3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("noisy", [True, False])
def test_looking_leaves_no_trace(training, noisy):
    model, x = Tracing(), torch.randn(4, 3)
    before = x.clone()
    with unchanged(model):
        first = outputs_of(model, ExampleCall((x,)), training=training, noisy=noisy)
        again = outputs_of(model, ExampleCall((x,)), training=training, noisy=noisy)
    assert torch.equal(x, before)
    assert difference(first, again) <= 1e-6


def test_control_a_call_leaves_traces():
    model = Tracing()
    with pytest.raises(AssertionError, match="seen"), unchanged(model):
        model(torch.randn(4, 3))


def test_a_model_that_fails_says_how():
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("nothing")

    with pytest.raises(NotRunnableError, match=r"KeyError.*nothing"):
        outputs_of(Fails(), ExampleCall((torch.ones(1),)))


def test_what_cannot_be_looked_into_is_said():
    class Generates(nn.Module):
        def forward(self, x: Tensor):
            return (part for part in x)

    with pytest.raises(NotRunnableError, match="looked into"):
        outputs_of(Generates(), ExampleCall((torch.ones(1),)))


class Clipping(nn.Module):
    """Writes into the tensors of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.one.weight.data.mul_(0.5)
            self.two.weight.clamp_(-0.01, 0.01)
            self.norm.running_mean.add_(1)
        return self.two(self.norm(self.one(x)))


@pytest.mark.parametrize("training", [True, False])
def test_a_model_that_writes_into_its_layers_is_looked_at_without_a_trace(training):
    torch.manual_seed(0)
    model, x = Clipping().train(training), torch.randn(4, 3)
    with unchanged(model, but=ANALYSIS):
        splitgrow.growable(model, x)
    with unchanged(model), pytest.raises(splitgrow.FixedWidthError):
        model.expand_layer("one", 2)
    with unchanged(model):
        splitgrow.merge(model)
