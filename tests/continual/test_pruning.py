"""Pruning by magnitude, at once and little by little."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splitgrow.continual import GradualPruning
from splitgrow.continual.pruning import keep_largest


@given(st.lists(st.integers(-4, 4), min_size=1, max_size=30), st.data())
def test_those_that_are_kept_are_as_many_as_asked_for_and_none_left_out_is_larger(
    values: list[int], data: st.DataObject
) -> None:
    weights = torch.tensor(values, dtype=torch.float32)
    mask = torch.tensor(
        data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    )
    keep = data.draw(st.integers(-1, len(values) + 1))
    kept = keep_largest(weights, mask, keep)
    assert int(kept.sum()) == min(max(keep, 0), int(mask.sum()))
    assert not (kept & ~mask).any()
    left = mask & ~kept
    if kept.any() and left.any():
        assert weights[kept].abs().min() >= weights[left].abs().max()


def test_zeros_that_are_not_asked_about_are_never_kept() -> None:
    """Where all that is asked about is zero too."""
    mask = torch.tensor([False, True, True, False])
    assert keep_largest(torch.zeros(4), mask, 1).tolist() == [False, True, False, False]


@given(
    st.floats(0, 0.9),
    st.floats(0, 0.09),
    st.integers(1, 200),
    st.integers(1, 50),
)
def test_sparsity_rises_from_the_first_value_to_the_last_and_stays(
    initial: float, more: float, steps: int, every: int
) -> None:
    schedule = GradualPruning(initial, initial + more, steps, every)
    values = [schedule.sparsity(step) for step in range(steps + 5)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(initial)
    assert values[steps:] == pytest.approx([initial + more] * 5)
    due = [step for step in range(steps + 5) if schedule.due(step)]
    assert due[-1] == steps
    assert all(step % every == 0 for step in due[:-1])


def test_sparsity_is_cubic_in_what_is_left() -> None:
    """Equation 1 of Zhu & Gupta."""
    schedule = GradualPruning(0.2, 0.8, 10)
    assert schedule.sparsity(5) == pytest.approx(0.8 - 0.6 * 0.5**3)


@pytest.mark.parametrize(
    "arguments", [(0.5, 0.4, 10), (-0.1, 0.4, 10), (0.1, 1.0, 10), (0.1, 0.2, 0), (0.1, 0.2, 5, 0)]
)
def test_a_schedule_that_makes_no_sense_is_refused(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"sparsity must rise|at least 1"):
        GradualPruning(*arguments)  # type: ignore[arg-type]
