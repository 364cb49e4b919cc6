"""When a model grows: steps, shares of the arithmetic, metrics."""

from __future__ import annotations

import random

import pytest

from splitgrow import ComputeShares, Every, Gap, Plateau
from splitgrow.grower import Progress, When


def due_at(when: When, observations: list[dict[str, float] | None]) -> list[int]:
    """The observations, by number, at which a rule says that it is time; none clears its notes."""
    notes: dict[str, object] = {}
    found = []
    for number, metrics in enumerate(observations):
        if when.due(Progress(number, 0, 0, metrics, notes)):
            found.append(number)
            notes = {}
    return found


def stalls(values: list[float], patience: int, delta: float) -> list[int]:
    """The same for a loss, by looking back at all values since the last growth."""
    found, start = [], 0
    for now in range(len(values)):
        best, best_at = values[start], start
        for at in range(start, now + 1):
            if values[at] < best - delta:
                best, best_at = values[at], at
        if now - best_at >= patience:
            found.append(now)
            start = now + 1
    return found


@pytest.mark.parametrize("seed", range(20))
def test_a_plateau_is_patience_observations_without_a_better_one(seed) -> None:
    draw = random.Random(seed)
    values = [draw.choice([1.0, 0.9, 0.8, 0.5]) + 0.01 * draw.random() for _ in range(30)]
    patience, delta = draw.choice([1, 2, 4]), draw.choice([0.0, 0.05])
    losses = [{"loss": value} for value in values]
    gains = [{"loss": -value} for value in values]
    expected = stalls(values, patience, delta)
    assert due_at(Plateau("loss", patience, delta), losses) == expected
    assert due_at(Plateau("loss", patience, delta, mode="max"), gains) == expected


def test_control_another_patience_gives_other_moments() -> None:
    losses = [{"loss": value} for value in (1.0, 1.0, 0.5, 0.5, 0.5, 0.4)]
    assert due_at(Plateau("loss", patience=1), losses) == [1, 3]
    assert due_at(Plateau("loss", patience=2), losses) == [4]


def test_steps_without_metrics_are_no_observations() -> None:
    losses = [{"loss": 1.0}, None, None, {"loss": 1.0}, None, {"loss": 1.0}]
    assert due_at(Plateau("loss", patience=2), losses) == [5]


def test_a_gap_grows_where_training_has_stalled_and_validation_is_near() -> None:
    rule = Gap("train", "val", threshold=0.1, patience=1)
    seen = [(1.0, 1.0), (0.5, 0.5), (0.5, 0.7), (0.5, 0.55), (0.4, 0.4)]
    assert due_at(rule, [{"train": t, "val": v} for t, v in seen]) == [3]
    best = Gap("train", "val", threshold=0.1, patience=1, mode="max")
    assert due_at(best, [{"train": -t, "val": -v} for t, v in seen]) == [3]
    wide = Gap("train", "val", threshold=0.3, patience=1)  # control: another threshold
    assert due_at(wide, [{"train": t, "val": v} for t, v in seen]) == [2]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ({"los": 1.0}, "have no 'loss'; they have los"),
        ({"loss": float("nan")}, "is nan"),
        ({"loss": float("inf")}, "is inf"),
    ],
)
def test_a_metric_that_is_missing_or_not_finite_is_an_error(metrics, message) -> None:
    with pytest.raises(ValueError, match=message):
        Plateau("loss").due(Progress(1, 0, 0, metrics, {}))


def test_shares_are_passed_in_turn() -> None:
    rule = ComputeShares([0.25, 0.5], macs=1000)
    spent = [(0, 249), (0, 250), (1, 300), (1, 500)]
    assert [rule.due(Progress(1, done, macs)) for done, macs in spent] == [False, True, False, True]
    assert rule.growths == 2


def test_every_k_steps_begins_at_step_k() -> None:
    rule = Every(3)
    assert [rule.due(Progress(step, step // 4, 0)) for step in range(1, 8)] == [
        False,
        False,
        True,
        False,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Every(0), ValueError),
        (lambda: Every(2.0), TypeError),
        (lambda: ComputeShares([], macs=1), ValueError),
        (lambda: ComputeShares([0.5, 0.2], macs=1), ValueError),
        (lambda: ComputeShares([0.2, 1.0], macs=1), ValueError),
        (lambda: ComputeShares([0.2], macs=0), ValueError),
        (lambda: ComputeShares(["a"], macs=1), TypeError),
        (lambda: Plateau(3), TypeError),
        (lambda: Plateau("loss", patience=0), ValueError),
        (lambda: Plateau("loss", min_delta=-1), ValueError),
        (lambda: Plateau("loss", mode="least"), ValueError),
        (lambda: Gap("loss", "loss", threshold=0.1), ValueError),
        (lambda: Gap("loss", "val", threshold="wide"), TypeError),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, error) -> None:
    with pytest.raises(error):
        make()
