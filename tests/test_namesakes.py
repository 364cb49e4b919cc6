"""Numbers that forward does not read follow a width where name and value leave no doubt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attention_cases import GroupedQueries
from helpers import assert_equal, randomise
from torch import Tensor, nn

import splitgrow
from splitgrow.edits import NumberChange

X = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def made(build: Callable[[], nn.Module]) -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(build().double().eval()), X)


class Describing(nn.Module):
    """Holds numbers that nothing but other code reads."""

    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, 12), nn.Linear(12, 5)
        vars(self).update(held)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).tanh())


FOLLOWING = (
    "hidden_size out_features n_hidden num_channels inner_dim planes width intermediate_size "
    "d_hidden num_filters nf hiddenDim"
)
STAYING = "kernel_size vocab_size max_dim num_groups image_size stride steps depth nfx"


@pytest.mark.parametrize("name", FOLLOWING.split())
def test_a_number_that_is_called_a_width_and_is_one_follows_it(name: str) -> None:
    model = made(lambda: Describing(**{name: 12}))
    edit = model.expand_layer("up", 2)
    assert edit.numbers == (NumberChange("", name, (12, 14)),)
    assert getattr(model, name) == getattr(splitgrow.merge(model), name) == 14
    with model.at(0):
        assert getattr(model, name) == 12


@pytest.mark.parametrize("name", STAYING.split())
def test_a_number_that_is_called_something_else_stays(name: str) -> None:
    model = made(lambda: Describing(**{name: 12}))
    assert model.expand_layer("up", 2).numbers == ()
    assert getattr(model, name) == 12


@pytest.mark.parametrize("value", [11, 12.0, "12", True, None, 5, [12]])
def test_a_number_that_is_not_the_width_stays(value: Any) -> None:
    model = made(lambda: Describing(hidden_size=value))
    assert model.expand_layer("up", 2).numbers == ()
    assert model.hidden_size == value


class TwoWidths(nn.Module):
    """Two layers of one width that grow apart."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden_size = 6
        self.one, self.other, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.one(x)).tanh())


def test_a_number_that_could_mean_either_of_two_widths_stays() -> None:
    model = made(TwoWidths)
    assert model.expand({"one": 1, "other": 2}).numbers == ()
    assert model.hidden_size == 6


class ByHeadSize(nn.Module):
    """Reshapes by the size of a head alone, and holds how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = 2, 3, 6
        self.value, self.out = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.value(x).view(*x.shape[:-1], -1, self.attention_head_size)
        heads = heads.softmax(-1)
        return self.out(heads.flatten(-2))


def test_numbers_of_heads_that_forward_does_not_read_follow_too() -> None:
    model = made(ByHeadSize)
    before = model(X)
    edit = model.expand_layer("value", 3)
    assert {change.attribute: change.value for change in edit.numbers} == {
        "num_attention_heads": (2, 3),
        "all_head_size": (6, 9),
    }
    assert model.attention_head_size == 3
    assert_equal(model(X), before)


def test_grouped_queries_hold_their_numbers_of_heads() -> None:
    model = made(GroupedQueries)
    attend = model.attend
    model.expand_layer("attend.key", 3)
    assert (attend.num_heads, attend.num_key_heads) == (6, 3)
    assert (attend.n_rep, attend.head_dim) == (2, 3)
