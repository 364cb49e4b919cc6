"""If training and evaluation take different steps, both are traced; if not, one run is."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal, leading, outputs_of
from torch import Tensor, nn
from torch.nn import functional as F
from written import X, written

import splitgrow
from splitgrow.analysis import analyzer as analysis
from splitgrow.analysis.training_flag import may_ask_for_the_mode


def by_name(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    return model.head(y + model.other(x) if model.training else y)


def by_text(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    return model.head(y + model.other(x) if getattr(model, "training") else y)  # noqa: B009


def _is_on(module: nn.Module) -> bool:
    return module.training


def in_a_function(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    return model.head(y + model.other(x) if _is_on(model) else y)


def in_a_closure(model: Any, x: Tensor) -> Tensor:
    def between(y: Tensor) -> Tensor:
        return y + model.other(x) if model.head.training else y

    return model.head(between(model.one(x)))


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any) -> Any:
        return function(*args)

    return call


HIDDEN = "train" + "ing"


def unreadable(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    return model.head(y + model.other(x) if getattr(model, HIDDEN) else y)


def alike(model: Any, x: Tensor) -> Tensor:
    return model.head(F.relu(model.one(x)) + model.other(x))


NAMED = (by_name, by_text, in_a_function, in_a_closure, wrapped(by_name))


@pytest.mark.parametrize("forward", [*NAMED, unreadable])
def test_what_runs_in_training_alone_grows_along(forward: Any) -> None:
    model = splitgrow.growable(written(forward), X)
    before = outputs_of(model.train(), X)
    edit = model.expand_layer("one", 2)
    assert {change.name for change in edit.changes} == {"one", "other", "head"}
    assert_equal(outputs_of(model, X), before)


def by_equation(model: Any, x: Tensor) -> Tensor:
    y = model.one(x)
    equation = "btc,bsc->bst" if getattr(model, HIDDEN) else "bsc,btc->bst"
    return model.head(y) + torch.einsum(equation, y, y).mean()


def test_an_equation_that_only_training_has_is_noticed() -> None:
    model = splitgrow.growable(written(by_equation), X)
    assert not model.layers[0].growable


@pytest.mark.parametrize("forward", NAMED)
def test_code_that_names_the_mode_is_found(forward: Any) -> None:
    assert may_ask_for_the_mode([written(forward)])


@pytest.mark.parametrize("forward", [alike, unreadable])
def test_code_that_does_not_name_it_is_not(forward: Any) -> None:
    assert not may_ask_for_the_mode([written(forward)])


def test_a_forward_that_is_an_object_cannot_be_read() -> None:
    model = written(alike)
    assert not may_ask_for_the_mode([model])
    model.forward = functools.partial(alike, model)
    assert may_ask_for_the_mode([model])


@pytest.mark.parametrize(
    ("forward", "modes"), [(alike, 1), (by_name, 2), (unreadable, 2), (by_equation, 2)]
)
def test_training_is_recorded_by_itself_only_where_it_may_differ(
    forward: Any, modes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = []

    def record(*args: Any, training: bool) -> Any:
        recorded.append(training)
        return original(*args, training=training)

    original = analysis.trace_model
    monkeypatch.setattr(analysis, "trace_model", record)
    splitgrow.growable(written(forward), X)
    assert recorded == [False, True][:modes]


def test_a_width_that_counts_in_evaluation_alone_is_fixed() -> None:
    def forward(model: Any, x: Tensor) -> Tensor:
        y = model.one(x)
        if not model.training:
            for _ in range(y.shape[-1]):
                y = y * 1.1
        return model.head(y)

    model = splitgrow.growable(written(forward), X)
    growing = {layer.name for layer in model.layers if layer.growable}
    assert growing == {"head"}


def test_the_laws_hold_where_one_run_stood_for_two() -> None:
    model = splitgrow.growable(written(alike), X)
    before = outputs_of(model, X)
    model.expand({"one": 2, "head": 1})
    assert_equal(leading(outputs_of(model, X), before), before)
    assert_equal(leading(outputs_of(model.train(), X), before), before)
