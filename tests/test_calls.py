"""A public call is guarded once, and an operation does not grow longer unnoticed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from calls import OPERATIONS, Calls, counted, network, prepared

from splitgrow.utils.rollback import Undo, temporarily

MOST = {
    "growable": (8_850, 4_100),
    "expand_layer": (2_650, 1_100),
    "expand_layer, check=False": (1_350, 700),
    "insert_layer": (8_850, 3_850),
    "insert_layer, check=False": (7_300, 3_850),
    "fuse": (3_000, 1_400),
}
"""The most calls and moves between modules: a tenth above those when this was written."""


def guards(calls: Calls) -> int:
    """How many stacks of steps there were, each of which is guarded by itself."""
    return calls.functions["utils/rollback.py", "Undo.__init__"]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_operation_takes_no_more_calls_than_it_did(operation: str) -> None:
    calls = counted(operation)
    most, most_moves = MOST[operation]
    assert most / 2 < calls.functions.total() <= most
    assert most_moves / 2 < calls.moves.total() <= most_moves


CHANGES: dict[str, Callable[[Any], object]] = {
    "expand": lambda model: model.expand({"3": 2, "0": 1}, check=False),
    "consolidate": lambda model: model.consolidate(check=False),
    "absorb": lambda model: model.absorb(check=False),
    "next_generation": lambda model: model.next_generation(),
    "unfreeze": lambda model: model.unfreeze(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_guarded_once(change: Callable[[Any], object]) -> None:
    model = prepared(network())
    for _ in range(2):
        model.expand_layer("3", 2)
    with Calls() as calls:
        change(model)
    assert guards(calls) == 1
    assert calls.functions["utils/model_lock.py", "lock_"] == 1


def test_a_check_adds_a_guard_for_each_of_its_two_runs() -> None:
    assert guards(counted("expand_layer")) == 3


def test_control_guards_and_moves_are_counted() -> None:
    @temporarily
    def work(undo: Undo) -> None:
        temporarily(inner)()

    def inner(undo: Undo) -> None:
        undo.on_failure(list)

    with Calls() as calls:
        work()
    assert guards(calls) == 2
    assert calls.functions["utils/rollback.py", "Undo.on_failure"] == 1
    assert calls.moves.total() == 0
