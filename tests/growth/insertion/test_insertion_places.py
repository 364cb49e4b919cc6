"""Insertions at several places in one edit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_equal, assert_identical, randomise, randomise_new_blocks
from torch import Tensor, nn

import splitgrow
from splitgrow.growth.insertion import block_copies, insertion

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    def __init__(self, place: int) -> None:
        super().__init__()
        self.layer_idx, self.one, self.two = place, nn.Linear(4, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(x).tanh())


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(map(Block, range(4))), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def growable() -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(Net()).double().eval(), X)


PLACES: Any = ["blocks.2", "blocks.0", "blocks.3"]


def test_one_edit_has_an_insertion_for_each_place_and_the_function_stays() -> None:
    model = growable()
    before = model(X)
    edit = model.insert_layer(PLACES, "block")
    assert [item.host for item in edit.inserted] == sorted(PLACES)
    assert len(splitgrow.handle(model).edits) == 1
    assert_equal(model(X), before)
    randomise_new_blocks(model)
    with torch.no_grad():
        for parameter in model.parameters_of(edit):
            parameter.add_(0.3 * torch.randn_like(parameter))
    merged = splitgrow.merge(model)
    assert [block.layer_idx for block in merged.blocks] == list(range(7))
    assert_equal(merged(X), model(X))
    assert (model(X) - before).abs().max() > 1e-3
    with model.at(0):
        assert_identical(model(X), before)
    fresh = growable()
    fresh.load_state_dict(model.state_dict())
    assert_identical(fresh(X), model(X))


def test_it_is_the_same_as_one_insertion_after_the_other() -> None:
    together, apart = growable(), growable()
    together.insert_layer(PLACES, "block")
    for place in PLACES:
        apart.insert_layer(place, "block")
    ours, theirs = splitgrow.merge(together), splitgrow.merge(apart)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_the_model_is_analysed_once_and_blocks_of_one_kind_are_tried_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    counts = {"analysed": 0, "tried": 0}

    def counted(name: str, work: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return work(*args, **kwargs)

        return run

    monkeypatch.setattr(insertion, "analysed_anew", counted("analysed", insertion.analysed_anew))
    monkeypatch.setattr(block_copies, "_check", counted("tried", block_copies._check))
    growable().insert_layer(PLACES, "block")
    assert counts == {"analysed": 1, "tried": 1}


@pytest.mark.parametrize("kind", ["residual", "gate", "identity"])
def test_other_kinds_go_to_several_places_too(kind: str) -> None:
    model = growable()
    before = model(X)
    options = {"activation": nn.Identity()} if kind == "identity" else {}
    edit = model.insert_layer(["blocks.0", ("blocks.1", "blocks.2.one"), "head"], kind, **options)
    assert len(edit.inserted) == 3
    assert_equal(model(X), before)
    assert_equal(splitgrow.merge(model)(X), before)


@pytest.mark.filterwarnings("ignore::splitgrow.SplitGrowWarning")
def test_stacked_blocks_at_several_places_have_one_change() -> None:
    edit = growable().insert_layer(["blocks.0", "blocks.1"], "stack")
    assert len({item.options["moved"] for item in edit.inserted}) == 1


@pytest.mark.parametrize(
    ("after", "options", "error", "words"),
    [
        ([], {}, ValueError, "names no place"),
        (["blocks.0", "blocks.0"], {}, ValueError, "two of the places are at `blocks.0`"),
        (["blocks.0", "nowhere"], {}, ValueError, "no module 'nowhere'"),
        (["blocks.0", "head"], {"kind": "block"}, splitgrow.InsertionError, "`head`"),
        (
            ["blocks.0", "blocks.1"],
            {"kind": "fade", "module": nn.Linear(4, 4).double()},
            ValueError,
            "one module cannot be inserted at several places",
        ),
    ],
)
def test_places_that_do_not_go_together_are_refused_and_nothing_changes(
    after: Any, options: Any, error: type[Exception], words: str
) -> None:
    model = growable()
    before = model(X)
    with pytest.raises(error, match=words):
        model.insert_layer(after, **options)
    assert not splitgrow.handle(model).edits
    assert_identical(model(X), before)
    assert [block.layer_idx for block in model.blocks] == [0, 1, 2, 3]
