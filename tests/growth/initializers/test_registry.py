"""Initializers by name, and what their claims may be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import splitgrow
from splitgrow.growth.initializers import Initializer, registry
from splitgrow.growth.initializers.silent_helpers import Zero
from splitgrow.growth.prepared import PreparedEdit

PAGE = (Path(__file__).parents[3] / "docs" / "initializers.md").read_text()


class Silent(Zero):
    name = "silent"


@pytest.fixture
def registered() -> Iterator[None]:
    splitgrow.register_initializer(Silent())
    yield
    del registry._INITIALIZERS["silent"]


def test_a_name_is_registered_once(registered: None) -> None:
    net: Any = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    net = splitgrow.growable(net, torch.ones(1, 2))
    assert net.expand_layer("0", 2, initializer="silent").initializer == "silent"
    for each in (Silent(), Zero()):
        with pytest.raises(ValueError, match=f"there is an initializer '{each.name}' already"):
            splitgrow.register_initializer(each)
    assert "silent" in splitgrow.initializers()


def test_those_that_are_shown_cannot_be_changed() -> None:
    shown: Any = splitgrow.initializers()
    with pytest.raises(TypeError):
        shown["zero"] = Silent()


class Liar(Initializer):
    name = "liar"

    def apply(self, prepared: PreparedEdit) -> None:
        assert prepared.layers


def wrong(**claims: object) -> Initializer:
    made = Liar()
    vars(made).update(claims)
    return made


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (Liar, r"an initializer is an instance of .* \(.*zero.*\), got <class"),
        ("zero", r"got 'zero'"),
        (wrong(name=""), r"Liar\.name must be a text, got ''"),
        (wrong(divides=0), r"liar\.divides must be an int of at least 1, got 0"),
        (wrong(divides=True), r"liar\.divides must be an int of at least 1, got True"),
        (wrong(exact="yes"), r"liar\.exact must be a bool, got 'yes'"),
        (wrong(needs_data=None), r"liar\.needs_data must be a bool, got None"),
        (wrong(needs_unfrozen=1), r"liar\.needs_unfrozen must be a bool, got 1"),
        (wrong(keeps_variance=0.5), r"liar\.keeps_variance must be a bool, got 0\.5"),
        (wrong(way="mean"), r"liar\.way must be 'zero', 'average', 'duplicate' or None, got 'mean"),
        (wrong(first_gradients=("new",)), r"must be a frozenset of 'new' and 'helper', got \('n"),
        (wrong(first_gradients=frozenset(("old",))), r"liar\.first_gradients must be a frozenset"),
        (wrong(differ_from="later"), r"liar\.differ_from must be one of 'birth', 'step', '', got"),
    ],
)
def test_what_is_no_initializer_is_a_type_error(given: Any, reason: str) -> None:
    known = dict(registry._INITIALIZERS)
    with pytest.raises(TypeError, match=reason):
        splitgrow.register_initializer(given)
    assert known == registry._INITIALIZERS


def written_contracts(page: str) -> dict[str, dict[str, str]]:
    """The contracts in the table of a page."""
    lines = page[page.index("| initializer | exact |") :].split("\n\n", maxsplit=1)[0].splitlines()
    head, _, *rest = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip('`"'): dict(zip(head[1:], row[1:], strict=True)) for row in rest}


def test_the_page_on_growing_has_the_contracts() -> None:
    declared = {name: dict(each.contract) for name, each in splitgrow.initializers().items()}
    assert written_contracts(PAGE) == declared


def test_control_a_page_with_another_contract_is_noticed() -> None:
    line = next(line for line in PAGE.splitlines() if line.startswith('| `"pair"`'))
    other = PAGE.replace(line, line.replace("yes", "no", 1))
    assert written_contracts(other)["pair"]["exact"] == "no"
