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


class _Collecting(nn.Module):
    """Collects further results by hooks that it puts on its parts at its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.seen = nn.Linear(2, 3), nn.Linear(3, 2), []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not getattr(self, "_output_hooks_installed", False):
            self.first.register_forward_hook(lambda _, __, y: self.seen.append(y))
            self._output_hooks_installed = True
        self.seen.clear()
        y = self.last(self.first(x))
        return y, self.seen[0]


def test_a_run_without_hooks_lets_a_model_put_its_own_there_again() -> None:
    import splitgrow  # noqa: PLC0415

    model: Any = _Collecting()
    x = torch.randn(4, 2)
    model(x)
    hooks = dict(model.first._forward_hooks)
    grown: Any = splitgrow.growable(model, x)
    assert dict(model.first._forward_hooks) == hooks
    assert model._output_hooks_installed
    edit = grown.expand_layer("first", 2)
    assert grown(x)[1].shape == (4, 5)
    assert edit.parameters
