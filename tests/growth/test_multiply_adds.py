"""Multiply-adds of models, counted without running them for real."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from cases import CASES
from grown_policies import convolutional, multiply_adds_of
from torch import Tensor, nn

import splitgrow
from splitgrow import Factor, SplitGrowError
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.multiply_adds import (
    MacsCounter,
    grow_copy_,
    multiply_adds,
    untold_copy,
)


def growth(request: dict[str, int]) -> Any:
    """A change of a copy; None for one of no units."""
    return partial(grow_copy_, request=request, way=None) if request else None


def test_the_multiply_adds_are_those_of_a_formula() -> None:
    model = convolutional()
    measure = MacsCounter(model)
    assert measure.samples == 5
    assert measure.macs == multiply_adds_of(8, 12, 10)
    later = [*measure.after(map(growth, [{"0": 4}, {}, {"3": 3, "6": 5}]))]
    assert later == [multiply_adds_of(*w) for w in [(12, 12, 10), (12, 12, 10), (12, 15, 15)]]
    assert measure.macs != later[0]


def test_measuring_leaves_the_model_and_the_random_numbers_as_they_were() -> None:
    model = convolutional()
    before = {name: value.clone() for name, value in model.state_dict().items() if name}
    state = torch.get_rng_state()
    [*MacsCounter(model).after([growth({"0": 4})])]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not history_of(model).edits
    assert not [*history_of(model).kin.copies]


CHECKED = [c for c in CASES if c.name in {"u-net", "grouped queries", "deciding", "cells"}]


@pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.name)
def test_the_multiply_adds_of_tomorrow_are_those_after_the_growth(case) -> None:
    model = splitgrow.growable(case.model(), case.inputs())
    request = Factor(1.5).request(model)
    (later,) = MacsCounter(model).after([growth(request)])
    splitgrow.handle(model).expand(request)
    assert MacsCounter(model).macs == later


class Reads(nn.Module):
    """Reads a value, which a tensor without values does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(x) * (2.0 if float(x.sum()) > 0 else 1.0))


def test_a_model_that_does_not_run_on_the_meta_device_runs_for_real() -> None:
    model = splitgrow.growable(Reads(), torch.ones(3, 4))
    with pytest.raises(SplitGrowError, match="cannot be counted"):
        multiply_adds(untold_copy(model, device="meta"))
    assert MacsCounter(model).macs == 4 * 6 + 6 * 2
    assert [*MacsCounter(model).after([growth({"hidden": 2})])] == [4 * 8 + 8 * 2]
