"""Compiled models and parts of models are analysed as if they were not compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_equal, outputs_of
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow

pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """Two layers with a function in between that may be compiled."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Linear(5, 8), nn.Linear(8, 3), function

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def in_place(model: Net) -> None:
    model.compile(backend="eager")


def a_part_in_place(model: Net) -> None:
    model.a.compile(backend="eager")


def its_function(model: Net) -> None:
    model.function = torch.compile(model.function, backend="eager")


@pytest.mark.parametrize("compile_it", [in_place, a_part_in_place, its_function])
@pytest.mark.parametrize("ran", [True, False])
def test_what_is_compiled_grows_and_goes_on_running_compiled(compile_it, ran):
    torch.manual_seed(0)
    model: Any = Net(F.gelu).double().eval()
    before = outputs_of(model, X)
    compile_it(model)
    if ran:
        assert_equal(outputs_of(model, X), before)
    splitgrow.growable(model, X)
    assert model.layers[0].growable, model.layers[0].reason
    model.expand_layer("a", 4)
    assert_equal(outputs_of(model, X), before)
    if compile_it is in_place:
        assert model._compiled_call_impl is not None
    torch._dynamo.reset()
