"""Growth's promises in training mode: all if nothing is frozen, and with norms held if not."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import assert_equal, largest_difference, leading, outputs_of, randomise
from torch import nn

import splitgrow

case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def everything(model: Any) -> dict[str, int]:
    request: dict[str, int] = {}
    for layer in model.layers:
        if layer.growable and not set(layer.group) & set(request):
            request[layer.name] = layer.step
    return request


def steady(model: nn.Module) -> nn.Module:
    """In training mode, but without dropout, whose draws follow the shapes."""
    model.train()
    for module in model.modules():
        if "Dropout" in type(module).__name__:
            module.eval()
    return model


def with_norms_held(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.eval()
    return model


def grown(case: Case, *, freeze: bool) -> tuple[nn.Module, Any]:
    plain = randomise(case.model())
    model: Any = splitgrow.growable(copy.deepcopy(plain), case.inputs())
    model.expand(everything(model), freeze=freeze)
    return plain, model


@case
def test_growth_without_freezing_leaves_the_outputs_in_training_mode_alone(case: Case):
    plain, model = grown(case, freeze=False)
    before = outputs_of(steady(plain), *case.inputs())
    assert_equal(leading(outputs_of(steady(model), *case.inputs()), before), before)


@case
def test_growth_that_freezes_has_norms_use_their_running_statistics_in_training_mode(case: Case):
    plain, model = grown(case, freeze=True)
    before = outputs_of(with_norms_held(steady(plain)), *case.inputs())
    assert_equal(leading(outputs_of(steady(model), *case.inputs()), before), before)


def test_control_in_training_mode_outputs_move_by_the_statistics_difference():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 1))
    x = torch.randn(4, 3, 6, 6, dtype=torch.float64)
    model: Any = splitgrow.growable(randomise(net.double()), x)
    before = outputs_of(model.train(), x)
    model.expand_layer("0", 2)
    assert largest_difference(outputs_of(model.train(), x), before) > 1e-3
