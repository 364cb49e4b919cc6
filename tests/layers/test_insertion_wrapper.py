"""The wrapper around a module with insertions, as if it were not there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import nn

import splitgrow

X = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def inserted() -> Any:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double().eval()
    model = splitgrow.growable(model, X)
    edit = model.insert_layer("1", "residual")
    with torch.no_grad():
        for parameter in model.parameters_of(edit):
            parameter.normal_()
    return model


def test_functional_call_sets_parameters_and_buffers_below_it() -> None:
    model = inserted()
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    halves = {n: t / 2 if t.is_floating_point() else t for n, t in named.items()}
    expected = torch.func.functional_call(splitgrow.merge(model), _plain_names(halves), (X,))
    assert_equal(torch.func.functional_call(model, halves, (X,)), expected)
    assert all(t is named[n] for n, t in model.named_parameters())


def _plain_names(tensors: dict[str, Any]) -> dict[str, Any]:
    merged: Any = splitgrow.merge(inserted())
    return dict(zip(merged.state_dict(), tensors_in_order(tensors, merged), strict=True))


def tensors_in_order(tensors: dict[str, Any], merged: nn.Module) -> list[Any]:
    order = inserted().state_dict()
    own = [tensors[n] for n in order if n in tensors]
    assert len(own) == len(merged.state_dict())
    return own


def test_torch_export_runs_a_model_with_an_insertion() -> None:
    model = inserted()
    assert_equal(torch.export.export(model, (X,)).module()(X), model(X))


def test_a_parameter_that_is_set_is_the_wrapped_modules() -> None:
    model = inserted()
    weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
    model[1].weight = weight
    assert model[1].wrapped.weight is weight
    assert "weight" not in vars(model[1])["_parameters"]
    model[1].own = nn.Parameter(torch.ones(1))
    assert "own" in vars(model[1])["_parameters"]
    with pytest.raises(AttributeError):
        _ = model[1].nothing


def test_a_tensor_that_is_set_on_a_grown_layer_goes_to_the_wrapper_or_is_refused() -> None:
    torch.manual_seed(0)
    model: Any = splitgrow.growable(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).double(), X)
    model.expand_layer("0", 2)
    model.insert_layer("0", "residual")
    model[0].own = nn.Parameter(torch.ones(1, dtype=torch.float64))
    assert "own" in vars(model[0])["_parameters"]
    with pytest.raises((splitgrow.SplitGrowError, KeyError)):
        model[0].weight = nn.Parameter(torch.ones(5, 2))
    assert_equal(splitgrow.merge(model)(X), model(X))
