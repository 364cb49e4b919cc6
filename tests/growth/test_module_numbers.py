"""Numbers in modules, such as a number of heads, stay true in growth, merging and the past."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from attention_cases import FusedAttention, FusedHeads
from helpers import assert_equal, assert_identical, outputs_of, randomise, randomise_new_blocks
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.errors import StructureChangedError
from splitgrow.growth import apply as growth
from splitgrow.growth import module_numbers as attributes
from splitgrow.growth import optimizers
from splitgrow.growth.edit_parts import NumberChange
from splitgrow.growth.edits import Edit

X = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Attending(nn.Module):
    """Attention of two heads of three, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.attn = nn.Linear(5, 6), FusedAttention(6, 2, 3)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.attn(self.first(x)))


def made(build: Callable[[], nn.Module], x: Tensor = X) -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(build().double().eval()), x)


def attending() -> Any:
    return made(Attending)


def numbers(model: Any) -> tuple[int, int, int]:
    return model.attn.num_heads, model.attn.attn_dim, model.attn.head_dim


def grow_a_head(model: Any, **options: Any) -> Edit:
    edit: Edit = model.expand_layer("attn.qkv", 9, **options)
    randomise_new_blocks(model)
    return edit


def test_a_new_head_raises_the_numbers_that_forward_reshapes_by() -> None:
    model = attending()
    assert numbers(model) == (2, 6, 3)
    before = model(X)
    edit = model.expand_layer("attn.qkv", 9)
    assert numbers(model) == (3, 9, 3)
    assert_equal(model(X), before)
    assert edit.numbers == (
        NumberChange("attn", "num_heads", (2, 3)),
        NumberChange("attn", "attn_dim", (6, 9)),
    )
    assert [type(number) for number in numbers(model)] == [int, int, int]


def test_the_numbers_are_plain_ones_after_the_analysis() -> None:
    assert [type(number) for number in numbers(attending())] == [int, int, int]


def test_control_with_the_old_numbers_the_grown_model_does_not_run() -> None:
    model = attending()
    grow_a_head(model)
    model.attn.num_heads = 2
    with pytest.raises(RuntimeError, match="shape"):
        model(X)


def test_growth_elsewhere_leaves_the_numbers_alone() -> None:
    model = attending()
    edit = model.expand({"first": 2, "head": 1})
    assert edit.numbers == ()
    assert numbers(model) == (2, 6, 3)


def test_a_plan_names_the_numbers_and_changes_none() -> None:
    model = attending()
    with unchanged(model):
        edit = model.plan({"attn.qkv": 18})
    assert [change.value for change in edit.numbers] == [(2, 4), (6, 12)]
    assert model.expand({"attn.qkv": 18}) == edit


def test_the_merged_model_holds_the_numbers_of_its_generation() -> None:
    model = attending()
    first = model(X)
    grow_a_head(model)
    second = model(X)
    model.next_generation()
    model.expand_layer("attn.qkv", 9)
    for generation, heads in ((None, 4), (2, 4), (1, 3), (0, 2)):
        merged: Any = splitgrow.merge(model, generation=generation)
        assert numbers(merged) == (heads, 3 * heads, 3)
        assert merged.attn.qkv.out_features == 9 * heads
    assert_equal(splitgrow.merge(model, generation=1)(X), second)
    assert_equal(splitgrow.merge(model, generation=0)(X), first)
    assert numbers(model) == (4, 12, 3)


def test_an_earlier_generation_is_shown_with_its_numbers() -> None:
    model = attending()
    first = outputs_of(model, X)
    grow_a_head(model)
    second = outputs_of(model, X)
    model.next_generation()
    model.expand_layer("attn.qkv", 9)
    with model.at(0):
        assert numbers(model) == (2, 6, 3)
        assert_identical(outputs_of(model, X), first)
        with model.at(1):
            assert numbers(model) == (3, 9, 3)
            assert_identical(outputs_of(model, X), second)
            with model.at(2):
                assert numbers(model) == (4, 12, 3)
        assert numbers(model) == (2, 6, 3)
    assert numbers(model) == (4, 12, 3)


def test_an_error_inside_at_puts_the_numbers_back() -> None:
    model = attending()
    grow_a_head(model)
    with unchanged(model):
        with suppress(KeyError), model.at(0):
            assert numbers(model) == (2, 6, 3)
            raise KeyError
        assert numbers(model) == (3, 9, 3)


def test_a_model_analysed_again_remembers_the_numbers_of_its_past() -> None:
    model = attending()
    first = outputs_of(model, X)
    grow_a_head(model)
    splitgrow.growable(model, X)
    grow_a_head(model)
    assert numbers(model) == (4, 12, 3)
    with model.at(0):
        assert numbers(model) == (2, 6, 3)
        assert_identical(outputs_of(model, X), first)
    merged: Any = splitgrow.merge(model)
    assert numbers(merged) == (4, 12, 3)
    assert_equal(merged(X), model(X))


FAULTS = {
    "setting a number": (attributes, "set_number_"),
    "joining a group": (optimizers, "set_members_"),
    "growing the groups": (Groups, "grow"),
    "reading the structure": (growth, "structure"),
}


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name"), FAULTS.values(), ids=FAULTS.keys())
def test_a_growth_that_fails_takes_the_numbers_back(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, late: bool
) -> None:
    model = attending()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    real, calls, fault_at = getattr(owner, name), 0, 0

    def faulty(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fault_at and not late:
            raise MemoryError("a fault")
        result = real(*args, **kwargs)
        if calls == fault_at:
            raise MemoryError("a fault")
        return result

    monkeypatch.setattr(owner, name, faulty)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    grow_a_head(twin, optimizer=twin_optimizer)
    reached = calls
    assert reached > 0
    for number in range(1, reached + 1):
        with unchanged(model, optimizer):
            calls, fault_at = 0, number
            with pytest.raises(MemoryError, match="a fault"):
                grow_a_head(model, optimizer=optimizer)
    fault_at = 0
    grow_a_head(model, optimizer=optimizer)
    assert numbers(model) == (3, 9, 3)


def test_control_the_snapshot_notices_a_number() -> None:
    model = attending()
    with pytest.raises(AssertionError, match="attribute num_heads"), unchanged(model):
        model.attn.num_heads = 3


# --- changed by hand ----------------------------------------------------------------------------

USES: dict[str, Callable[[Any], Any]] = {
    "expand": lambda model: model.expand_layer("first", 1),
    "plan": lambda model: model.plan({"first": 1}),
    "merging the past": lambda model: splitgrow.merge(model, generation=0),
    "fusing the past": lambda model: splitgrow.fuse(model, generation=0),
    "showing the past": lambda model: model.at(0).__enter__(),
    "parameters": lambda model: model.generation_parameters(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
@pytest.mark.parametrize("value", [2, 4, None, "3"])
def test_a_number_that_was_changed_by_hand_is_noticed(
    use: Callable[[Any], Any], value: Any
) -> None:
    model = attending()
    grow_a_head(model)
    model.attn.num_heads = value
    with unchanged(model), pytest.raises(StructureChangedError, match=r"attn\.num_heads"):
        use(model)


@pytest.mark.parametrize("use", USES.values(), ids=USES.keys())
def test_control_other_attributes_may_change(use: Callable[[Any], Any]) -> None:
    model = attending()
    grow_a_head(model)
    model.attn.note, model.attn.scale = 3, 0.5
    use(model)


def test_a_number_that_was_deleted_is_noticed() -> None:
    model = attending()
    del model.attn.attn_dim
    with unchanged(model), pytest.raises(StructureChangedError, match=r"attn\.attn_dim"):
        model.expand_layer("first", 1)


# --- lists and tuples ---------------------------------------------------------------------------


class Splitting(nn.Module):
    """Cuts a layer's features into parts of the sizes that it was given."""

    def __init__(self, sizes: Any) -> None:
        super().__init__()
        self.sizes = sizes
        self.both = nn.Linear(5, sum(sizes))
        self.left, self.right = nn.Linear(sizes[0], 3), nn.Linear(sizes[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.both(x).split(self.sizes, dim=-1)
        return self.left(left).tanh() + self.right(right)


@pytest.mark.parametrize("kind", [list, tuple])
def test_numbers_in_a_list_follow_too_and_the_list_itself_is_left_alone(kind: Any) -> None:
    sizes = kind([4, 4])
    model = made(lambda: Splitting(sizes))
    first = outputs_of(model, X)
    edit = model.expand_layer("both", 3)
    assert edit.numbers == (NumberChange("", "sizes[1]", (4, 7)),)
    assert model.sizes == kind([4, 7])
    assert type(model.sizes) is kind
    assert sizes == kind([4, 4])
    assert_equal(outputs_of(model, X), first)
    randomise_new_blocks(model)
    merged: Any = splitgrow.merge(model)
    assert merged.sizes == kind([4, 7])
    assert_equal(merged(X), model(X))
    with model.at(0):
        assert model.sizes == kind([4, 4])
        assert_identical(outputs_of(model, X), first)
    assert model.sizes == kind([4, 7])


def test_a_list_that_two_modules_share_grows_for_the_one_whose_layer_grew() -> None:
    sizes = [4, 4]

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other = Splitting(sizes), Splitting(sizes)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(x), self.other(x)

    model = made(Two)
    before = model(X)
    model.expand_layer("other.both", 2)
    assert (model.one.sizes, model.other.sizes, sizes) == ([4, 4], [4, 6], [4, 4])
    assert_equal(model(X), before)


@pytest.mark.parametrize("sizes", [[4], [4, 5], (), None])
def test_a_list_that_was_changed_by_hand_is_noticed(sizes: Any) -> None:
    model = made(lambda: Splitting([4, 4]))
    model.sizes = sizes
    with unchanged(model), pytest.raises(StructureChangedError, match=r"sizes\[1\]"):
        model.expand_layer("both", 1)


# --- the record, copies -------------------------------------------------------------------------


def test_an_edit_with_numbers_survives_json() -> None:
    edit = grow_a_head(attending())
    again = Edit.from_json(edit.to_json())
    assert again == edit
    assert again.numbers[0].value == (2, 3)
    assert json.loads(edit.to_json())["numbers"][1] == {
        "module": "attn",
        "attribute": "attn_dim",
        "value": [6, 9],
    }


GIVEN = {"module": "attn", "attribute": "n", "value": [1, 2]}


@pytest.mark.parametrize(
    "numbers",
    [None, 3, [3], [{}], [GIVEN | {"value": 3}], [GIVEN | {"value": [1]}], [GIVEN | {"more": 1}]],
)
def test_json_with_numbers_that_are_none_is_a_value_error(numbers: Any) -> None:
    fields = json.loads(grow_a_head(attending()).to_json())
    with pytest.raises(ValueError, match="not an edit of version 2"):
        Edit.from_json(json.dumps({**fields, "numbers": numbers}))


def test_an_edit_prints_the_numbers_below_the_layers() -> None:
    assert str(grow_a_head(attending())).splitlines()[-2:] == [
        "  attn.num_heads: 2 -> 3",
        "  attn.attn_dim: 6 -> 9",
    ]
    model = made(lambda: Splitting([4, 4]))
    assert str(model.expand_layer("both", 1)).splitlines()[-1] == "  sizes[1]: 4 -> 5"


def by_pickle(model: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle])
def test_a_copy_has_numbers_of_its_own(copied: Callable[[Any], Any]) -> None:
    model = attending()
    first = outputs_of(model, X)
    grow_a_head(model)
    other = copied(model)
    assert numbers(other) == (3, 9, 3)
    grow_a_head(other)
    assert (numbers(other), numbers(model)) == ((4, 12, 3), (3, 9, 3))
    with other.at(0):
        assert (numbers(other), numbers(model)) == ((2, 6, 3), (3, 9, 3))
        assert_identical(outputs_of(other, X), first)
    merged: Any = splitgrow.merge(other)
    assert numbers(merged) == (4, 12, 3)
    assert_equal(merged(X), other(X))


def test_the_repetitions_of_one_key_follow_the_heads_that_share_it() -> None:
    x = torch.randn(2, 3, 5, dtype=torch.float64)
    model = made(FusedHeads, x)
    before = model(x)
    model.expand_layer("one_key.qkv", 3)
    assert (model.one_key.num_heads, model.one_key.n_rep) == (5, 5)
    assert_equal(model(x), before)
    model.one_key.n_rep = 4  # the control
    with pytest.raises(RuntimeError):
        model(x)


def test_a_number_of_which_forward_takes_a_share_grows_in_whole_shares() -> None:
    model = made(FusedHeads, torch.randn(2, 3, 5, dtype=torch.float64))
    model.expand_layer("split.qvk", 18)
    assert model.split.num_heads == 6
    with pytest.raises(ValueError, match="18"):
        model.expand_layer("split.qvk", 9)
