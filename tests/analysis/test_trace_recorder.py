"""A width or held number in a decision or computation of forward grows only where it may."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import Tensor
from written import Forward, X, laws_hold, reasons, written

import splitgrow

Use = Any


def deciding(test: Use) -> Any:
    """A model that doubles the channels of `one` where a test of its own says so."""

    def forward(model: Any, x: Tensor) -> Tensor:
        y = model.one(x)
        return model.head(y * 2 if test(y) else y)

    return splitgrow.growable(written(forward), X)


STAYS_TRUE: dict[str, Use] = {
    "more than one": lambda y: y.shape[-1] > 1,
    "at least fewer": lambda y: y.size(-1) >= 7,
    "not so few": lambda y: y.shape[-1] <= 3,
    "not another, smaller number": lambda y: y.shape[-1] != 7,
    "any at all": lambda y: bool(y.shape[-1]),
    "twice as many": lambda y: 2 * y.shape[-1] > y.shape[-1] + 1,
    "half of them": lambda y: y.shape[-1] // 2 >= 3,
    "itself": lambda y: y.shape[-1] == y.shape[-1],
    "the same sum": lambda y: y.shape[-1] + 1 == 1 + y.shape[-1],
    "its own shape": lambda y: y.shape == y.tanh().shape,
    "other dimensions": lambda y: y.shape[0] == 2 and y.shape[:2] == (2, 4),
    "the rank": lambda y: len(y.shape) == 3,
    "a chain": lambda y: 0 < 3 < y.shape[-1],
    "a smaller maximum": lambda y: max(y.shape[0], y.shape[-1], 3) > 5,
}
COULD_FLIP: dict[str, Use] = {
    "is eight": lambda y: y.shape[-1] == 8,
    "is not eight": lambda y: y.shape[-1] != 8,
    "is not another, larger number": lambda y: y.shape[-1] != 9,
    "less than some": lambda y: y.shape[-1] < 100,
    "at most what it is": lambda y: y.shape[-1] <= 8,
    "more than what it is": lambda y: y.shape[-1] > 8,
    "one of some": lambda y: y.shape[-1] in (4, 8),
    "one of a set": lambda y: y.shape[-1] in {4, 8},
    "one of a set that it is not in yet": lambda y: y.shape[-1] in {16, 101},
    "a whole shape": lambda y: y.shape == (2, 4, 8),
    "all elements": lambda y: y.numel() == 64,
    "as wide as long": lambda y: y.shape[-1] == 2 * y.shape[1],
    "a bound from below its half": lambda y: y.shape[-1] // 2 < 5,
    "by its bits": lambda y: y.shape[-1] & 8,
    "by a float": lambda y: y.shape[-1] > 8.5,
    "by its root": lambda y: math.sqrt(y.shape[-1]) > 3,
    "the smallest": lambda y: min(y.shape[-1], 10) == y.shape[-1],
}


@pytest.mark.parametrize("test", STAYS_TRUE.values(), ids=STAYS_TRUE.keys())
def test_a_comparison_that_comes_out_the_same_as_widths_grow_fixes_nothing(test: Use) -> None:
    assert laws_hold(deciding(test)) == ["one", "head"]


@pytest.mark.parametrize("test", COULD_FLIP.values(), ids=COULD_FLIP.keys())
def test_a_comparison_that_could_come_out_otherwise_fixes_the_width_and_names_the_place(
    test: Use,
) -> None:
    model = deciding(test)
    assert "test_trace_recorder.py:" in reasons(model)["one"]
    assert laws_hold(model) == ["head"]


def test_a_width_that_is_compared_by_its_remainder_grows_in_whole_steps() -> None:
    model = deciding(lambda y: y.shape[-1] % 2 == 0)
    assert {layer.name: layer.step for layer in model.layers}["one"] == 2
    assert laws_hold(model) == ["one", "head"]


@pytest.mark.parametrize("width", [9, 10, 16, 101, 200])
@pytest.mark.parametrize("test", STAYS_TRUE.values(), ids=STAYS_TRUE.keys())
def test_control_such_a_comparison_does_come_out_the_same(test: Use, width: int) -> None:
    assert bool(test(torch.zeros(2, 4, 8))) == bool(test(torch.zeros(2, 4, width)))


@pytest.mark.parametrize("test", COULD_FLIP.values(), ids=COULD_FLIP.keys())
def test_control_such_a_comparison_does_come_out_otherwise_somewhere(test: Use) -> None:
    now = bool(test(torch.zeros(2, 4, 8)))
    widths = (9, 10, 16, 101, 200)
    assert any(bool(test(torch.zeros(2, 4, width))) != now for width in widths)


def same_width(model: Any, x: Tensor) -> Tensor:
    one, other = model.one(x), model.other(x)
    return model.head(one * 2 if one.shape[-1] == other.shape[-1] else one)


def same_shape(model: Any, x: Tensor) -> Tensor:
    one, other = model.one(x), model.other(x)
    assert one.shape == other.shape
    return model.head(one)


@pytest.mark.parametrize("forward", [same_width, same_shape])
def test_widths_that_forward_compares_with_each_other_grow_together(forward: Forward) -> None:
    model = splitgrow.growable(written(forward), X)
    assert model.layers[0].group == ("other",)
    assert laws_hold(model) == ["one", "other", "head"]


def test_widths_of_which_one_is_to_stay_the_larger_are_fixed() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        one, other = model.one(x), model.other(x).repeat(1, 1, 2)
        return model.head(one * 2 if one.shape[-1] < other.shape[-1] else one)

    model = splitgrow.growable(written(forward), X)
    assert all("compares it" in reasons(model)[name] for name in ("one", "other"))


# --- numbers that a module holds ----------------------------------------------------------------


def heads_apart(model: Any, x: Tensor) -> Tensor:
    """The features of `one` as so many heads, as the model's number has it, and back."""
    heads = model.one(x).view(*x.shape[:-1], model.heads, 4)
    return heads.softmax(dim=-1).flatten(2)


def test_a_number_that_forward_only_reshapes_by_follows_its_heads() -> None:
    model = splitgrow.growable(written(lambda m, x: m.head(heads_apart(m, x)), heads=2), X)
    assert model.layers[0].step == 4
    assert laws_hold(model) == ["one", "head"]
    assert model.heads == 4


USES: dict[str, Use] = {
    "compared": lambda heads: 2.0 if heads == 2 else 1.0,
    "divided": lambda heads: 1 / heads,
    "to a power": lambda heads: heads**-0.5,
    "its root": math.sqrt,
    "as a float": float,
    "as an int": int,
    "hashed": lambda heads: {2: 3.0}.get(heads, 1.0),
    "a remainder": lambda heads: heads % 4,
    "shifted": lambda heads: heads << 1,
    "times a float": lambda heads: heads * 0.5,
    "as it is": lambda heads: heads,
    "a tensor": lambda heads: torch.tensor(heads, dtype=torch.float64),
    "a tensor of as many": lambda heads: torch.arange(heads).sum(),
    "the product with itself": lambda heads: heads * heads,
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_a_number_that_is_used_as_a_value_too_is_fixed_at_that_place(use: Use) -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        return model.head(heads_apart(model, x) * use(model.heads))

    model = splitgrow.growable(written(forward, heads=2), X)
    assert "test_trace_recorder.py:" in reasons(model)["one"]
    assert laws_hold(model) == ["head"]
    assert model.heads == 2


HARMLESS: dict[str, Use] = {
    "more than one": lambda heads: heads > 1,
    "some": bool,
    "not one": lambda heads: heads != 1,
    "an int": lambda heads: isinstance(heads, int),
    "itself": lambda heads: +heads == heads,
}


@pytest.mark.parametrize("test", HARMLESS.values(), ids=HARMLESS.keys())
def test_a_number_that_decides_what_growth_does_not_change_still_follows(test: Use) -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        y = heads_apart(model, x)
        return model.head(y * 2 if test(model.heads) else y)

    model = splitgrow.growable(written(forward, heads=2), X)
    assert laws_hold(model) == ["one", "head"]
    assert model.heads == 4


def test_a_number_that_is_checked_against_a_width_follows_it() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        y = model.one(x)
        if y.shape[-1] != model.width:
            raise ValueError("another width")
        return model.head(y)

    model = splitgrow.growable(written(forward, width=8), X)
    before = model(X)
    model.expand_layer("one", 3)
    assert model.width == 11
    assert_equal(model(X), before)


@pytest.mark.parametrize("heads", [True, 2.0, {"heads": 2}, [2, "more"]])
def test_what_is_not_a_plain_int_is_no_number_to_follow(heads: Any) -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        held = model.heads
        count = held[next(iter(held))] if isinstance(held, dict) else 2
        return model.head(model.one(x).view(2, 4, count, 4).flatten(2))

    model = splitgrow.growable(written(forward, heads=heads), X)
    assert "writes its size down (2, 4)" in reasons(model)["one"]
    assert model.heads == heads
