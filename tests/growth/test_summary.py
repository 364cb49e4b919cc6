"""A model at a glance: the numbers are those of its parameters."""

from __future__ import annotations

import pytest
import torch
from cases import CASES, Case
from torch import nn

import splitgrow


@pytest.mark.parametrize("case", CASES[::6], ids=lambda case: case.name)
def test_the_numbers_are_those_of_the_parameters(case: Case) -> None:
    model = splitgrow.growable(case.model(), case.inputs())
    net = splitgrow.handle(model)
    grown = net.layers.where(growable=True, output=False)[:2]
    widths = {layer.name: layer.width for layer in net.layers}
    for layer in grown:
        net.expand_layer(layer.name, net.layers[layer.name].step)
    summary = net.summary()
    assert summary.parameters == sum(p.numel() for p in model.parameters())
    assert summary.training == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert summary.edits == len(grown)
    assert {item.name: item.width[0] for item in summary.layers} == widths
    now = {layer.name: layer.width for layer in net.layers}
    assert {item.name: item.width[1] for item in summary.layers} == now
    assert sum(item.parameters for item in summary.layers) <= 2 * summary.parameters
    assert str(summary).count("\n") == 1 + len(summary.layers)


def test_a_layer_s_numbers_are_its_own() -> None:
    net = splitgrow.growable(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.ones(1, 2))
    net.expand_layer("0", 2)
    first, second = net.summary().layers
    assert (first.blocks, first.parameters, first.training) == (2, 15, 6)
    assert (second.blocks, second.parameters, second.training) == (2, 6, 2)
    net.shrink_layer("0", 1, give_up=True)
    assert net.summary().layers[0].width == (3, 4)
    assert "<table>" in net.summary()._repr_html_()
