"""Numbers that forward does not read stay as they are, for any names and values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attention_cases import GroupedQueries
from helpers import assert_equal, randomise
from torch import Tensor, nn

import splitgrow
from splitgrow.growth.edit_parts import NumberChange

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


class Reading(Describing):
    """Reads the number: as a size, so that it is known to follow the width."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x).tanh().view(*x.shape[:-1], self.hidden_size)
        return x + self.down(h)


NAMES = """
    hidden_size out_features n_hidden num_channels inner_dim planes width intermediate_size d_hidden
    num_filters nf hiddenDim time_dim cond_features embed_dim num_heads kernel_size vocab_size
    num_groups in_channels dim
"""


@pytest.mark.parametrize("name", NAMES.split())
def test_a_number_that_forward_does_not_read_stays(name: str) -> None:
    model = made(lambda: Describing(**{name: 12}))
    before = model(X)
    assert model.expand_layer("up", 2).numbers == ()
    assert getattr(model, name) == getattr(splitgrow.merge(model), name) == 12
    assert_equal(model(X), before)
    assert model.up.out_features == model.down.in_features == 14


def test_a_number_that_forward_reads_follows() -> None:
    model = made(lambda: Reading(hidden_size=12, time_dim=12))
    edit = model.expand_layer("up", 2)
    assert edit.numbers == (NumberChange("", "hidden_size", (12, 14)),)
    assert (model.hidden_size, model.time_dim) == (14, 12)
    with model.at(0):
        assert model.hidden_size == 12


@pytest.mark.parametrize("value", [12, 24, 12.0, "12", True, None, [12], (12, 12), {"size": 12}])
def test_a_value_of_any_type_stays(value: Any) -> None:
    model = made(lambda: Describing(hidden_size=value))
    assert model.expand_layer("up", 2).numbers == ()
    assert model.hidden_size == value


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


def test_numbers_of_heads_that_forward_does_not_read_stay() -> None:
    model = made(ByHeadSize)
    before = model(X)
    assert model.expand_layer("value", 3).numbers == ()
    assert (model.num_attention_heads, model.all_head_size, model.attention_head_size) == (2, 6, 3)
    assert_equal(model(X), before)


def test_grouped_queries_keep_the_numbers_that_they_do_not_read() -> None:
    model = made(GroupedQueries)
    attend = model.attend
    held = dict(vars(attend))
    before = model(X)
    read = {change.attribute for change in model.expand_layer("attend.key", 3).numbers}
    for name, value in held.items():
        if type(value) is int:
            assert (vars(attend)[name] == value) == (name not in read)
    assert_equal(model(X), before)


def test_a_checkpoint_whose_edits_changed_such_a_number_still_loads(tmp_path: Path) -> None:
    model = made(lambda: Describing(hidden_size=12))
    model.expand_layer("up", 2)
    history = splitgrow.handle(model)._history
    change = NumberChange("", "hidden_size", (12, 14))
    history.edits = [replace(history.edits[0], numbers=(change,))]
    model.hidden_size = 14
    splitgrow.save(model, tmp_path / "old.safetensors")
    for load in (
        lambda fresh: splitgrow.load(fresh, tmp_path / "old.safetensors"),
        lambda fresh: fresh.load_state_dict(model.state_dict()),
    ):
        fresh = made(lambda: Describing(hidden_size=12))
        load(fresh)
        assert fresh.hidden_size == 14
        assert_equal(fresh(X), model(X))
        assert fresh.expand_layer("up", 1).numbers == ()
        assert_equal(fresh(X), model(X))
        with fresh.at(0):
            assert fresh.hidden_size == 12
