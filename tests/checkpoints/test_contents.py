"""Example calls in a file: those by place as they always were, and trees that are none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from splitgrow.checkpoints.contents import call_from, form_of
from splitgrow.errors import CheckpointError
from splitgrow.utils.example_call import ExampleCall

X = torch.ones(2, 3)


def test_a_call_by_place_has_the_form_of_files_from_before() -> None:
    assert form_of(ExampleCall((1, None))) == (1, None)


@pytest.mark.parametrize(
    "call",
    [
        ExampleCall(),
        ExampleCall((1, {"args": (), "kwargs": {}})),
        ExampleCall(({"args": (), "kwargs": {}},)),
        ExampleCall((), {"args": 3, "kwargs": None}),
        ExampleCall((1,), {"flag": True}),
    ],
)
def test_calls_come_back(call: ExampleCall) -> None:
    back = call_from(form_of(call))
    assert (back.args, back.kwargs) == (call.args, call.kwargs)


@pytest.mark.parametrize(
    "tree",
    [
        None,
        [X],
        {"x": X},
        {"args": (), "kwargs": {}, "more": 1},
        {"args": [], "kwargs": {}},
        {"args": (), "kwargs": [("x", X)]},
        {"args": (), "kwargs": {3: X}},
        {"args": X, "kwargs": {}},
    ],
)
def test_trees_that_are_no_calls_are_refused(tree: Any) -> None:
    with pytest.raises(CheckpointError, match="the example inputs of the file are none"):
        call_from(tree)
