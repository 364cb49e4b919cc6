"""Wider trial runs find widths that Python hides: in loops, in indexing, in floats on the left."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from helpers import assert_equal, leading, outputs_of
from torch import Tensor, nn

import splitgrow
from splitgrow.errors import FixedWidthError

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """A layer, what is done with its output and its width, and a layer that reads that."""

    def __init__(self, between: Callable[[Tensor, int], Tensor]) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(5, 8), nn.Linear(5, 3), nn.Linear(11, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        y = self.one(x)
        y = self.between(y, y.shape[-1])
        return self.head(torch.cat([y, self.other(x)], -1))


def looped(y: Tensor, width: int) -> Tensor:
    for _ in range(width):
        y = y * 1.1
    return y


TABLE = [0.5 * i for i in range(20)]

HIDDEN: dict[str, Callable[[Tensor, int], Tensor]] = {
    "a float divided by it": lambda y, w: y * (1.0 / w),
    "a float times it": lambda y, w: y * (0.5 * w),
    "a float to its power": lambda y, w: y * (2.0**w),
    "a float compared with it": lambda y, w: y * 2 if w > 8.5 else y,
    "a fraction": lambda y, w: y * float(Fraction(1) / w),
    "a loop": looped,
    "an index": lambda y, w: y * TABLE[w],
    "a slice of a list": lambda y, w: y * sum(TABLE[:w]),
    "its logarithm": lambda y, w: y / math.log(w),
    "its square root": lambda y, w: y / math.isqrt(w),
    "its greatest common divisor": lambda y, w: y * math.gcd(w, 12),
    "the length of its text": lambda y, w: y * len(str(10 ** (w - 7))),
    "its bits": lambda y, w: y * (w - 1).bit_length(),
    "its numerator": lambda y, w: y * w.numerator,
    "the number of elements of its shape": lambda y, w: y / y.shape.numel(),
    "a filled tensor": lambda y, w: y * torch.full((), w),
}


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("name", HIDDEN)
def test_a_width_that_is_used_where_nothing_can_follow_it_is_fixed(name: str, check: bool) -> None:
    """Also where values are not tried out, which would find it as well."""
    model: Any = splitgrow.growable(Net(HIDDEN[name]).double(), X, check=check)
    with pytest.raises(FixedWidthError, match=r"test_trial_runs\.py:\d+"):
        model.expand_layer("one", 1)
    before = outputs_of(model, X)
    model.expand({"other": 2, "head": 1})  # what has nothing to do with it still grows
    assert_equal(leading(outputs_of(model, X), before), [before])


@pytest.mark.parametrize("name", HIDDEN)
def test_control_the_old_function_would_indeed_be_another(name: str) -> None:
    y = torch.ones(4, 8, dtype=torch.float64)
    wider = HIDDEN[name](torch.ones(4, 9, dtype=torch.float64), 9)[:, :8]
    assert not torch.equal(HIDDEN[name](y, 8), wider)


SEEN: dict[str, Callable[[Tensor, int], Tensor]] = {
    "a view": lambda y, w: y.view(-1, w),
    "a comparison that stays": lambda y, w: y * 2 if w > 3 else y,
    "zeros": lambda y, w: y + torch.zeros(w, dtype=y.dtype),
    "an assertion with a text": lambda y, w: (torch._assert(w > 1, f"only {w}"), y)[1],
}


@pytest.mark.parametrize("name", SEEN)
def test_a_width_that_is_followed_stays_free(name: str) -> None:
    model: Any = splitgrow.growable(Net(SEEN[name]).double(), X)
    before = outputs_of(model, X)
    model.expand_layer("one", 2)
    assert_equal(outputs_of(model, X), before)
