"""A request becomes units for each group: it is divided among them, and widths are rounded up."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from helpers import assert_equal, leading, outputs_of, randomise, randomise_new_blocks
from hypothesis import event, given, settings
from hypothesis import strategies as st
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.errors import FixedWidthError
from splitgrow.growth.planning import _shares

# --- shares -------------------------------------------------------------------------------------


def reachable(steps: Sequence[int], total: int) -> bool:
    """Whether some numbers of each step add up to the total: all of them are tried."""
    counts = (range(total // step + 1) for step in steps)
    return any(
        sum(step * n for step, n in zip(steps, numbers, strict=True)) == total
        for numbers in itertools.product(*counts)
    )


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=0, max_size=3), st.integers(0, 30))
def test_shares_add_up_wherever_that_is_possible(sizes: list[int], total: int) -> None:
    steps = dict(enumerate(sizes))
    shares = _shares(steps, total)
    event("shared" if shares else "not shared")
    assert (shares is not None) == reachable(sizes, total)
    if shares is not None:
        assert sum(steps[group] * units for group, units in shares.items()) == total
        assert all(units > 0 for units in shares.values())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(-30, -1))
def test_nothing_shrinks(sizes: list[int], total: int) -> None:
    assert _shares(dict(enumerate(sizes)), total) is None


def test_the_first_group_that_can_take_all_does() -> None:
    assert _shares({5: 2, 3: 1}, 4) == {5: 2}
    assert _shares({5: 2, 3: 1}, 5) == {3: 5}
    assert _shares({5: 2, 3: 3}, 5) == {5: 1, 3: 1}


# --- several groups on one axis -----------------------------------------------------------------


class Bundled(nn.Module):
    """One layer whose first features come in pairs and whose others come in threes."""

    def __init__(self, first: int = 2, second: int = 3) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.sizes = (2 * first, 2 * second)
        self.both = nn.Linear(4, sum(self.sizes))
        self.left, self.right = nn.Linear(self.sizes[0], 3), nn.Linear(self.sizes[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.both(x).split(self.sizes, dim=1)
        left = left.unflatten(1, (-1, self.first)).softmax(-1).flatten(1)
        right = right.unflatten(1, (-1, self.second)).softmax(-1).flatten(1)
        return self.left(left) + self.right(right)


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def made(model: nn.Module, x: Tensor = X) -> Any:
    return splitgrow.growable(randomise(model.double().eval()), x)


def bundled() -> Any:
    torch.manual_seed(0)
    return made(Bundled())


@pytest.mark.parametrize(
    ("n", "sizes"),
    [(2, (6, 6)), (3, (4, 9)), (5, (6, 9)), (6, (4, 12)), (7, (8, 9)), (8, (12, 6)), (9, (4, 15))],
)
def test_groups_whose_steps_only_add_up_together_share_the_growth(
    n: int, sizes: tuple[int, int]
) -> None:
    model = bundled()
    before = outputs_of(model, X)
    edit = model.expand_layer("both", n)
    assert model.sizes == sizes
    assert (edit.request["both"], model.layers[0].width) == (n, 10 + n)
    assert_equal(outputs_of(model, X), before)
    randomise_new_blocks(model)
    assert_equal(outputs_of(splitgrow.merge(model), X), outputs_of(model, X))


def test_a_number_that_no_shares_add_up_to_is_refused() -> None:
    model = bundled()
    with unchanged(model), pytest.raises(ValueError, match=r"n \(=1\) does not fit `both`"):
        model.expand_layer("both", 1)


# --- rounding up --------------------------------------------------------------------------------


class Grouped(nn.Module):
    """A grouped convolution, tied to a plain one by an addition."""

    def __init__(self, width: int = 12, groups: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, width, 1)
        self.body = nn.Conv2d(width, width, 3, padding=1, groups=groups)
        self.free, self.head = nn.Conv2d(width, 5, 1), nn.Conv2d(5, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.free(x + self.body(x)).relu())


IMAGES = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def grouped(width: int = 12, groups: int = 3) -> Any:
    torch.manual_seed(0)
    return made(Grouped(width, groups), IMAGES)


def width_of(model: Any, name: str) -> int:
    return next(layer.width for layer in model.layers if layer.name == name)


@pytest.mark.parametrize(
    ("n", "round_to", "width"),
    [(1, 8, 8), (3, 8, 8), (4, 8, 16), (11, 8, 16), (12, 8, 24), (1, 5, 10), (7, 1, 12), (2, 7, 7)],
)
def test_a_width_is_raised_to_the_next_multiple(n: int, round_to: int, width: int) -> None:
    model = grouped()
    planned = model.plan({"free": n}, round_to=round_to)
    edit = model.expand_layer("free", n, round_to=round_to)
    assert edit == planned
    assert edit.request == {"free": width - 5}
    assert width_of(model, "free") == width


@pytest.mark.parametrize("layer", ["stem", "body"])
@pytest.mark.parametrize(
    ("n", "round_to", "width"), [(1, 8, 24), (3, 8, 24), (13, 8, 48), (12, 1, 24), (4, 5, 30)]
)
def test_a_rounded_width_fits_what_is_tied_to_it(
    layer: str, n: int, round_to: int, width: int
) -> None:
    model = grouped()
    before = outputs_of(model, IMAGES)
    model.expand_layer(layer, n, round_to=round_to)
    assert (width_of(model, "stem"), width_of(model, "body")) == (width, width)
    assert_equal(leading(outputs_of(model, IMAGES), before), before)
    randomise_new_blocks(model)
    assert_equal(outputs_of(splitgrow.merge(model), IMAGES), outputs_of(model, IMAGES))


def test_each_layer_of_a_request_is_rounded() -> None:
    model = grouped()
    edit = model.expand({"free": 1, "body": 1, "head": 1}, round_to=4)
    assert edit.request == {"free": 3, "body": 12, "head": 1}
    assert [layer.width for layer in model.layers] == [24, 24, 8, 4]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.sampled_from([(6, 2), (12, 3), (9, 3), (4, 4)]))
def test_a_rounded_width_is_the_smallest_that_fits(
    n: int, round_to: int, form: tuple[int, int]
) -> None:
    width, groups = form
    model = grouped(width, groups)
    step = model.layers[0].step
    raised = [m for m in range(n, n + 200) if (width + m) % round_to == 0 and m % step == 0]
    if round_to == 1 and n % step:
        with pytest.raises(ValueError, match="does not fit"):
            model.plan({"stem": n}, round_to=round_to)
    elif raised:
        assert model.plan({"stem": n}, round_to=round_to).request == {"stem": raised[0]}
    else:
        with pytest.raises(ValueError, match="no width that is a multiple"):
            model.plan({"stem": n}, round_to=round_to)


def test_a_width_that_several_groups_share_is_rounded_too() -> None:
    model = bundled()
    model.expand_layer("both", 1, round_to=13)
    assert (model.layers[0].width, model.sizes) == (13, (4, 9))
    model.expand_layer("both", 2, round_to=9)
    assert (model.layers[0].width, model.sizes) == (18, (6, 12))


@pytest.mark.parametrize("round_to", [0, -1, -8])
def test_a_multiple_of_less_than_one_is_a_value_error(round_to: int) -> None:
    model = grouped()
    for use in (model.expand, model.plan):
        with unchanged(model), pytest.raises(ValueError, match=rf"round_to \(={round_to}\)"):
            use({"free": 1}, round_to=round_to)


@pytest.mark.parametrize("round_to", [True, False, 2.5, 8.0, "8", None])
def test_a_multiple_that_is_no_int_is_a_type_error(round_to: Any) -> None:
    model = grouped()
    for use in (model.expand, model.plan):
        with unchanged(model), pytest.raises(TypeError, match="round_to must be an int"):
            use({"free": 1}, round_to=round_to)


class Odd(nn.Module):
    """A pair of units next to one that cannot grow: three, five, seven, never even."""

    def __init__(self) -> None:
        super().__init__()
        self.odd, self.head = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.odd(x)
        one, pairs = x[:, :1], x[:, 1:]
        return self.head(pairs.unflatten(1, (-1, 2)).softmax(-1).flatten(1)) * one.softmax(-1)


def test_a_multiple_that_no_width_can_be_is_a_value_error() -> None:
    torch.manual_seed(0)
    model = made(Odd())
    assert (model.layers[0].width, model.layers[0].step) == (3, 2)
    with (
        unchanged(model),
        pytest.raises(ValueError, match=r"`odd` has no width that is a multiple of 2: its 3 units"),
    ):
        model.expand_layer("odd", 1, round_to=2)
    model.expand_layer("odd", 1, round_to=7)
    assert model.layers[0].width == 7


def test_a_layer_that_cannot_grow_says_so_whatever_it_is_rounded_to() -> None:
    model = made(nn.Sequential(nn.Linear(4, 3), nn.Softmax(-1), nn.Linear(3, 2)))
    with unchanged(model), pytest.raises(FixedWidthError, match="`0` cannot grow"):
        model.expand_layer("0", 1, round_to=8)
