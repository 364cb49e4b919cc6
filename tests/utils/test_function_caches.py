"""Functions that remember their results remember none of a run without values."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import Tensor, nn

import splitgrow
from splitgrow.analysis import tracer
from splitgrow.utils.function_caches import forget_fake_results_
from splitgrow.utils.rollback import Undo


def moments(length: int, dtype: torch.dtype) -> tuple[Tensor, dict[str, Tensor]]:
    times = torch.arange(length, dtype=dtype)
    return times.sin(), {"cos": times.cos()}


class Timed(nn.Module):
    """Adds a table that a function makes once for each length."""

    def __init__(self, table: Callable[[int, torch.dtype], Any]) -> None:
        super().__init__()
        self.table = table
        self.inner, self.head = nn.Linear(3, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        sin, rest = self.table(x.shape[1], x.dtype)
        return self.head(self.inner(x + sin[:, None] * rest["cos"][:, None]).tanh())


def timed() -> tuple[Timed, Any, Tensor]:
    torch.manual_seed(0)
    table = functools.lru_cache(maxsize=4)(moments)
    return Timed(table).double().eval(), table, torch.randn(2, 4, 3, dtype=torch.float64)


def test_a_model_computes_with_values_after_its_analysis() -> None:
    model, table, x = timed()
    expected = Timed(moments).double().eval()
    expected.load_state_dict(model.state_dict())
    splitgrow.growable(model, x)
    assert type(model(x)) is Tensor
    assert_equal(model(x), expected(x))
    model.expand_layer("inner", 2)
    assert_equal(model(x), expected(x))
    assert table.cache_info().currsize == 1


def test_without_that_it_would_compute_with_fake_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    monkeypatch.setattr(tracer, "forget_fake_results_", lambda *_, **__: None)
    model, _, x = timed()
    splitgrow.growable(model, x, check=False)
    with torch.no_grad():
        assert type(model(x)) is not Tensor


def test_results_with_values_stay() -> None:
    _, table, _ = timed()
    first = table(3, torch.float64)
    with Undo() as undo, undo:
        forget_fake_results_(undo, look=True)
        table(4, torch.float64)
    assert table(3, torch.float64) is first
    assert table.cache_info().currsize == 2
