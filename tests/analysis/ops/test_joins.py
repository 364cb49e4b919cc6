"""Splits at numbers that modules hold: the parts that follow the numbers grow."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_equal, randomise, randomise_new_blocks
from torch import Tensor, nn

import splitgrow

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class PartAndRest(nn.Module):
    """One part of the channels is worked on, and the rest is a width minus that part."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.dim = 3, 8
        self.first, self.inner = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 3, 1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one, rest = torch.split(self.first(x), [self.part, self.dim - self.part], dim=1)
        return self.head(torch.cat([self.inner(one).tanh() + one, rest], 1))


class Paths(nn.Module):
    """Equal parts, as wide as one number divided by another."""

    def __init__(self) -> None:
        super().__init__()
        self.num_paths, self.in_channels = 2, 8
        self.first = nn.Conv2d(3, 8, 1)
        self.paths = nn.ModuleList(nn.Conv2d(4, 6, 1) for _ in range(2))
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.first(x), self.in_channels // self.num_paths, 1)
        return self.head(sum(path(part) for path, part in zip(self.paths, parts, strict=True)))


class WrittenDown(PartAndRest):
    """The control: the same positions as literals."""

    def forward(self, x: Tensor) -> Tensor:
        one, rest = torch.split(self.first(x), [3, 5], dim=1)
        return self.head(torch.cat([self.inner(one).tanh() + one, rest], 1))


@pytest.mark.parametrize("kind", [PartAndRest, Paths])
def test_layers_before_and_behind_a_split_grow_exactly(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model: Any = splitgrow.growable(randomise(kind().double().eval()), X)
    before = model(X)
    for layer in model.layers[:-1]:
        assert layer.growable, layer.reason
        model.expand_layer(layer.name, layer.step)
        assert_equal(model(X), before)
    randomise_new_blocks(model)
    assert_equal(splitgrow.merge(model)(X), model(X))


def test_numbers_of_a_part_and_of_the_whole_follow() -> None:
    model: Any = splitgrow.growable(PartAndRest().double().eval(), X)
    model.expand_layer("inner", 2)
    assert (model.part, model.dim) == (5, 10)


def test_the_number_of_paths_stays_and_the_width_follows_it() -> None:
    model: Any = splitgrow.growable(Paths().double().eval(), X)
    model.expand_layer("first", 4)
    assert (model.num_paths, model.in_channels) == (2, 12)


def test_positions_that_are_written_down_fix_what_lies_before_them() -> None:
    model: Any = splitgrow.growable(WrittenDown().double().eval(), X)
    assert "written down" in next(layer.reason for layer in model.layers if layer.name == "inner")
