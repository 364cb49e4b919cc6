from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from splitgrow.cli.grow_settings import GrowSettings
from splitgrow.demos.arm_results import ArmEnd, ArmEvaluation, ArmPhase, ArmStep
from splitgrow.demos.arms import Arm, ArmCourse
from splitgrow.demos.datasets import Dataset


def _data(count: int) -> Dataset:
    x = torch.randn(count, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    return Dataset("points", x, torch.arange(count) % 2, x[:4], torch.arange(4) % 2, ("a", "b"))


def _arm(count: int = 21, *, cost: int = 8, macs: int = 4000, batch: int = 5) -> Arm:
    settings = GrowSettings(epochs=1, batch_size=batch)
    course = ArmCourse(_data(count), None, settings, macs)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    return Arm("small", network, course, cost, lambda event: None)


@pytest.mark.parametrize("macs", [1, 500, 4000, 4061])
@pytest.mark.parametrize("cost", [3, 8, 50])
def test_an_arm_stops_at_the_step_nearest_to_its_arithmetic(macs: int, cost: int) -> None:
    arm = _arm(macs=macs, cost=cost)
    arm.train()
    step = 3 * cost * 5
    assert arm.step >= 1
    assert abs(arm.macs - macs) <= max(step // 2 + 1, step if arm.step == 1 else 0)


def test_a_step_costs_three_forward_passes_for_each_image() -> None:
    arm = _arm(23, cost=8)
    arm.train()
    steps = arm.of_kind(ArmStep)
    costs = [after.macs - before.macs for before, after in pairwise(steps)]
    assert set(costs) == {3 * 8 * 5, 3 * 8 * 3}  # full batches, and the last of an epoch


def test_a_last_batch_of_one_image_is_left_out_and_a_single_one_is_not() -> None:
    assert [len(batch) for batch in _arm(21, batch=5).batches()] == [5, 5, 5, 5]
    assert [len(batch) for batch in _arm(22, batch=5).batches()] == [5, 5, 5, 5, 2]
    assert [len(batch) for batch in _arm(1, batch=5).batches()] == [1]


def test_all_arms_see_the_images_in_the_same_order() -> None:
    first, second = _arm().batches(), _arm().batches()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    arm = _arm()
    assert not torch.equal(torch.cat([*arm.batches()]), torch.cat([*arm.batches()]))


def test_the_rate_makes_one_cycle_over_the_arithmetic() -> None:
    arm = _arm(macs=40_000)
    rates = []
    for macs in range(0, 40_000, 500):
        arm.macs = macs
        rates.append(arm.rate(0))
    peak = rates.index(max(rates))
    assert 0.25 < peak / len(rates) < 0.35
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] < 0.01
    arm.macs = 50_000  # beyond the end it stays small, rather than rise again
    assert arm.rate(0) <= rates[-1]


def test_an_arm_looks_at_the_test_images_at_its_end_and_on_the_way() -> None:
    arm = _arm(macs=40_000)
    arm.train()
    assert isinstance(arm.events[0], ArmPhase)
    assert isinstance(arm.events[-1], ArmEnd)
    looks = arm.of_kind(ArmEvaluation)
    assert looks[-1].step == arm.step
    assert len(looks) in (arm.course.looks, arm.course.looks + 1)
    assert [look.seconds for look in looks] == sorted(look.seconds for look in looks)


@pytest.mark.parametrize(("count", "looks"), [(2, 6), (21, 15), (100, 24)])
def test_looks_do_not_outweigh_a_short_training(count: int, looks: int) -> None:
    assert _arm(count).course.looks == looks


def test_training_that_diverges_ends_with_the_reason() -> None:
    arm = _arm()
    arm.dataset.x_train.mul_(float("inf"))
    with pytest.raises(FloatingPointError, match="a lower learning rate may help"):
        arm.train()
