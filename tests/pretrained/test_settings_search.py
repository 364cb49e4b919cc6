"""The settings of a class, found from the form of a model of it, whatever they are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from splitgrow.pretrained.model_form import ModelForm
from splitgrow.pretrained.settings_search import SearchResult, SettingsSearch

SETTINGS: dict[str, Any] = {
    "hid": 12,
    "wide": 20,
    "nh": 4,
    "nkv": 2,
    "hd": None,
    "deep": 2,
    "words": 30,
    "tiny": 1e-5,
    "unused": 7,
}


class Block(nn.Module):
    def __init__(self, s: Mapping[str, Any]) -> None:
        super().__init__()
        self.head_dim = s["hd"] or s["hid"] // s["nh"]
        self.scale = self.head_dim**-0.5
        self.q = nn.Linear(s["hid"], s["nh"] * self.head_dim)
        self.k = nn.Linear(s["hid"], s["nkv"] * self.head_dim)
        self.o = nn.Linear(s["nh"] * self.head_dim, s["hid"])
        self.up, self.down = nn.Linear(s["hid"], s["wide"]), nn.Linear(s["wide"], s["hid"])
        self.norm = nn.LayerNorm(s["hid"], eps=s["tiny"])


class Model(nn.Module):
    """A class with settings of names that nobody knows."""

    def __init__(self, s: Mapping[str, Any]) -> None:
        super().__init__()
        if s["hid"] % s["nh"]:
            raise ValueError("no whole heads")
        self.table = nn.Embedding(s["words"], s["hid"])
        self.blocks = nn.ModuleList(Block(s) for _ in range(s["deep"]))


def made(changes: Mapping[str, Any]) -> nn.Module:
    with torch.device("meta"):
        return Model({**SETTINGS, **changes})


def searched(target: nn.Module) -> SearchResult:
    found = SettingsSearch(SETTINGS, made).find(ModelForm.of(target))
    assert found is not None
    return found


CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "hidden units": {"wide": 23},
    "the table": {"words": 37},
    "depth": {"deep": 3},
    "two blocks more": {"deep": 4},
    "heads of the same width": {"nh": 6, "nkv": 3, "hd": 3},
    "wider heads": {"hd": 5},
    "the stream alone": {"hid": 16, "hd": 3},
    "stream and heads": {"hid": 24, "nh": 8, "nkv": 4},
    "a norm's eps": {"tiny": 4e-6},
    "fewer heads of more units": {"hid": 24, "nh": 2, "nkv": 1},
    "all at once": {
        "hid": 24,
        "wide": 31,
        "nh": 8,
        "nkv": 4,
        "deep": 3,
        "words": 33,
        "tiny": 5e-6,
    },
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_the_settings_of_a_model_are_found_from_its_form(changes: dict[str, Any]) -> None:
    found = searched(made(changes))
    assert not found.left
    assert not found.odd
    again, target = ModelForm.of(made(found.changes)), ModelForm.of(made(changes))
    assert again.shapes == target.shapes
    assert again.numbers == target.numbers


@pytest.mark.parametrize("seed", range(20))
def test_so_are_settings_at_random(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    heads = drawn(1, 5)
    changes = {
        "hid": heads * 2 * drawn(1, 6),
        "nh": heads * 2,
        "nkv": heads,
        "wide": drawn(1, 50),
        "words": drawn(2, 60),
        "deep": drawn(2, 4),
        "hd": drawn(2, 9),
    }
    found = searched(made(changes))
    assert not found.left
    assert ModelForm.of(made(found.changes)).shapes == ModelForm.of(made(changes)).shapes


def test_only_settings_that_have_to_change_do() -> None:
    assert searched(made({"wide": 23})).changes == {"wide": 23}
    assert searched(made({})).changes == {}
    assert searched(made({"nh": 6, "nkv": 3, "hd": 2})).changes.keys() <= {"nh", "nkv", "hd"}


def test_more_heads_and_wider_heads_are_told_apart_by_the_numbers_that_modules_hold() -> None:
    """Both give all tensors the same shapes."""
    more = made({"hid": 24, "nh": 8, "nkv": 4})
    wider = made({"hid": 24, "nh": 4, "nkv": 2})
    assert ModelForm.of(more).shapes == ModelForm.of(wider).shapes
    for model, heads in ((more, 8), (wider, 4)):
        found = ModelForm.of(made(searched(model).changes))
        assert found.numbers["blocks.0", "head_dim"] == 24 // heads


def test_one_layer_of_many_fits_no_settings_and_the_rest_that_would_fit_is_named() -> None:
    model: Any = made({})
    with torch.device("meta"):
        model.blocks[0].up, model.blocks[0].down = nn.Linear(12, 23), nn.Linear(23, 12)
    target = ModelForm.of(model)
    search = SettingsSearch(SETTINGS, made)
    found = search.find(target)
    assert found is not None
    assert set(found.left) == {
        "blocks.0.up.weight",
        "blocks.0.up.bias",
        "blocks.0.down.weight",
    }
    near = search.nearest(found, target)
    assert near is not None
    setting, names = near
    assert setting == ("wide", 23)
    assert {name.split(".")[1] for name in names} == {"1"}


def test_two_values_of_one_eps_are_found_out() -> None:
    model: Any = made({})
    model.blocks[1].norm.eps = 3e-6
    found = searched(model)
    assert not found.left
    assert found.odd == (("blocks.1.norm", "eps"),)


def test_a_class_that_cannot_be_made_has_no_settings() -> None:
    assert SettingsSearch({"nh": 5}, lambda _: made({"nh": 5})).find(ModelForm({}, {})) is None


def test_errors_of_the_class_are_not_the_searchs_own_but_too_little_memory_is() -> None:
    def fails(changes: Mapping[str, Any]) -> nn.Module:
        if changes:
            raise MemoryError
        return made({})

    with pytest.raises(MemoryError):
        SettingsSearch(SETTINGS, fails).find(ModelForm.of(made({"wide": 3})))


def test_control_a_form_with_another_number_is_another_form() -> None:
    one, other = ModelForm.of(made({})), ModelForm.of(made({"tiny": 1e-6}))
    assert not one.unlike(other)
    assert {name for _, name in one.numbers_unlike(other)} == {"eps"}
    assert ModelForm.of(made({"wide": 21})).unlike(one)
