"""`expand_input`: new channels come after the old, and change nothing until they are learned."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import (
    assert_equal,
    assert_identical,
    largest_difference,
    leading,
    outputs_of,
    randomise,
)
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.growth import input_channels as module_under_test

case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

CANNOT = {"tokens", "decoder", "deciding", "both directions", "translator"}
"""The cases that read numbers of words, or decide by the sum of their input."""


def growable_case(case: Case) -> tuple[Any, Tensor]:
    model = randomise(case.model()).double()
    (x,) = case.inputs()
    return splitgrow.growable(model, x), x


@torch.no_grad()
def disturb(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


def wider(x: Tensor, dim: int, n: int) -> Tensor:
    """An input with n more channels, of any values."""
    shape = [*x.shape]
    shape[dim] = n
    return torch.cat([x, 3 * torch.randn(shape, dtype=x.dtype)], dim)


@case
def test_the_input_grows_or_says_why_it_cannot(case: Case) -> None:
    model, x = growable_case(case)
    before = outputs_of(model, x)
    if case.name in CANNOT:
        with unchanged(model), pytest.raises(splitgrow.FixedWidthError, match="input"):
            model.expand_input(12)
        return
    edit = model.expand_input(12)
    (n,) = edit.request.values()
    example = vars(model)["_splitgrow_history"].inputs.args[0]
    (dim,) = (d for d in range(x.dim()) if example.shape[d] != x.shape[d])
    y = wider(x, dim, n)
    assert_equal(leading(outputs_of(model, y), before), before)
    disturb(model)
    assert largest_difference(leading(outputs_of(model, y), before), before) > 1e-6  # the control
    with model.at(0):
        assert_identical(outputs_of(model, x), before)
    assert_equal(outputs_of(splitgrow.merge(model), y), outputs_of(model, y))
    if case.traceable:
        assert_equal(outputs_of(splitgrow.fuse(model), y), outputs_of(model, y))
        assert_equal(outputs_of(splitgrow.fuse(model, generation=0), x), before)


def net() -> Any:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    return splitgrow.growable(randomise(nn.Sequential(*layers)).double().eval(), x())


def x(channels: int = 1) -> Tensor:
    return torch.randn(2, channels, 5, 5, dtype=torch.float64)


def test_grey_becomes_colour_and_colour_gets_depth_and_layers_grow_in_between() -> None:
    model, grey = net(), x()
    before = outputs_of(model, grey)
    model.expand_input(2)
    colour = wider(grey, 1, 2)
    assert_equal(outputs_of(model, colour), before)
    model.expand_layer("0", 3)
    model.insert_layer("0", "identity")
    model.next_generation()
    disturb(model)
    now = outputs_of(model, colour)
    model.expand_input(1)
    depth = wider(colour, 1, 1)
    assert_equal(outputs_of(model, depth), now)
    assert_equal(outputs_of(splitgrow.fuse(model), depth), now)
    with model.at(0):
        assert_identical(outputs_of(model, grey), before)
    with model.at(1):
        assert_identical(outputs_of(model, colour), now)
    assert_equal(outputs_of(splitgrow.fuse(model, generation=1), colour), now)
    assert_equal(outputs_of(copy.deepcopy(model), depth), now)


def test_new_parameters_join_the_optimizer() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    edit = model.expand_input(2, optimizer=optimizer)
    assert str(edit).startswith("Edit 1 (generation 1, closes generation 0): input input +2")
    assert edit.parameters == 2 * 4 * 9
    assert any(p.shape == (4, 2, 3, 3) for p in optimizer.param_groups[0]["params"])


class Two(nn.Module):
    """Two inputs, of which one is added to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)

    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> Tensor:
        return self.left(left) + self.right(right) * scale


def test_one_of_several_inputs_is_named() -> None:
    left, right = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    model: Any = splitgrow.growable(randomise(Two()).double(), (left, right, 2.0))
    before = outputs_of(model, left, right, 2.0)
    model.expand_input(3, name="right")
    assert_equal(outputs_of(model, left, wider(right, 1, 3), 2.0), before)
    with unchanged(model), pytest.raises(ValueError, match="there are left, right"):
        model.expand_input(1, name="scale")


@pytest.mark.parametrize(
    ("arguments", "options", "error"),
    [
        ((0,), {}, ValueError),
        ((True,), {}, TypeError),
        ((1.0,), {}, TypeError),
        ((1,), {"name": "y"}, ValueError),
        ((1,), {"name": 3}, TypeError),
        ((1,), {"initializer": "ones"}, ValueError),
        ((1,), {"optimizer": 3}, TypeError),
    ],
)
def test_bad_requests_are_refused(arguments: Any, options: Any, error: type[Exception]) -> None:
    model = net()
    with unchanged(model), pytest.raises(error):
        model.expand_input(*arguments, **options)


def test_an_input_that_is_added_to_a_layer_that_is_fixed_is_refused() -> None:
    class Skipping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.scale = nn.Linear(3, 3), torch.ones(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x * self.scale)

    model: Any = splitgrow.growable(Skipping(), torch.randn(2, 3))
    with (
        unchanged(model),
        pytest.raises(splitgrow.FixedWidthError, match=r"no layer reads .* input `x`: .*scale"),
    ):
        model.expand_input(1)


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt])
@pytest.mark.parametrize("step", ["carry_out_", "widened", "analyse_again", "structure"])
def test_an_interruption_leaves_all_as_it_was(
    monkeypatch: pytest.MonkeyPatch, step: str, error: type[BaseException]
) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    original = getattr(module_under_test, step)

    def failing(*args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        raise error

    monkeypatch.setattr(module_under_test, step, failing)
    with unchanged(model, optimizer), pytest.raises(error):
        model.expand_input(1, optimizer=optimizer)
