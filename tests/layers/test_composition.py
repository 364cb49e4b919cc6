"""The blocks of a grown layer know where their tensors lie, however they came to know it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import assert_identical
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import splitgrow
from splitgrow.errors import StructureChangedError
from splitgrow.layers.composition import Composition
from splitgrow.layers.split_layer import SplitLayer

X = torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3)


class Joined(nn.Module):
    """New channels of `a` land in the middle of the inputs of `head`, those of `b` behind."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x)], 1))


def layers_of(model: nn.Module) -> Iterator[SplitLayer]:
    return (module for module in model.modules() if isinstance(module, SplitLayer))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from(("a", "b", "head")), max_size=5))
def test_what_blocks_learn_as_the_layer_grows_is_what_new_ones_find(grown: list[str]) -> None:
    model: Any = splitgrow.growable(Joined().double(), X)
    for name in grown:
        model.expand_layer(name, 1)
        for layer in layers_of(model):
            known = layer.composition()
            anew = Composition(known.modules, known.blocks, known.ins, known.outs)
            for key in ("weight", "bias"):
                assert known.lengths(key) == anew.lengths(key)
                having = [index for index, _ in known.parts(key)]
                assert known.joins(key, having) == anew.joins(key, having)
                assert_identical(known.assembled(key), known.value(key))


def test_blocks_learn_nothing_from_others() -> None:
    model: Any = splitgrow.growable(Joined().double(), X)
    model.expand_layer("b", 1)
    before = model.head.composition()
    before.lengths("weight")
    model.expand_layer("a", 1)  # in the middle
    after = model.head.composition()
    assert not Composition(after.modules, after.blocks, after.ins, after.outs).learn_(before)
    assert Composition(before.modules, before.blocks, before.ins, before.outs).learn_(before)
    other = (nn.Linear(4, 2), *before.modules[1:])
    assert not Composition(other, before.blocks, before.ins, before.outs).learn_(before)


def test_a_tensor_of_another_shape_is_noticed_however_often_the_layer_has_grown() -> None:
    model: Any = splitgrow.growable(Joined().double(), X)
    for _ in range(3):
        model.expand_layer("b", 1)
    model.head[2].weight = nn.Parameter(torch.zeros(2, 7, dtype=torch.float64))
    with pytest.raises(StructureChangedError, match=r"head\.2\.weight"):
        model.expand_layer("b", 1)


def test_a_tensor_that_is_replaced_counts_at_once() -> None:
    model: Any = splitgrow.growable(Joined().double(), X).eval()
    for _ in range(40):
        model.expand_layer("b", 1)
    before = model(X)
    model.b[7].weight = nn.Parameter(torch.ones(1, 3, dtype=torch.float64))
    model.head[7].weight = nn.Parameter(torch.ones(2, 1, dtype=torch.float64))
    added = model.b[7](X).sum(1, keepdim=True)
    torch.testing.assert_close(model(X), before + added)
    model.expand_layer("b", 1)
    torch.testing.assert_close(model(X), before + added)
