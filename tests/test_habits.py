"""Each habit of tests/habits.py, before a growth and after one, and the page that lists them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
from habits import HABITS, Habit, describe, grow, network

from splitgrow.errors import SplitGrowError, SplitGrowWarning

PAGE = Path(__file__).parent.parent / "docs" / "compatibility.md"


def nothing(_: object) -> None:
    """In the place of a growth."""


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("row", HABITS, ids=lambda row: row.name)
def test_a_habit_works_or_is_refused_as_the_page_says(row: Habit, order: str) -> None:
    outcome = row.before if order == "before" else row.after
    moments = (nothing, grow) if order == "before" else (grow, nothing)
    model, x = network()
    with warnings.catch_warnings():
        warnings.simplefilter("error", SplitGrowWarning)
        if not outcome.pattern:
            row.run(model, x, *moments)
            return
        refusals = (SplitGrowError, SplitGrowWarning, ValueError, TypeError, RuntimeError)
        with pytest.raises(refusals) as caught:
            row.run(model, x, *moments)
    assert re.search(outcome.pattern, str(caught.value))


def test_the_page_has_the_table() -> None:
    assert describe() in PAGE.read_text(), "put what `python tests/habits.py` prints there"
