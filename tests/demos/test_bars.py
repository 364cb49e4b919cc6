from __future__ import annotations

import io

import pytest
from rich.console import Console

from splitgrow.demos.arm_results import ArmEnd, ArmEvaluation, ArmPhase, ArmStep
from splitgrow.demos.bars import ArmBars, RecoveryBars, RunningMeans


def test_running_means_begin_with_the_first_values_and_follow_the_later_ones() -> None:
    means = RunningMeans()
    assert means.after(1.0, 10.0) == (1.0, 10.0)
    assert means.after(2.0, 0.0) == (pytest.approx(1.1), pytest.approx(9.0))


def test_an_arms_bar_is_its_arithmetic_and_full_at_its_end() -> None:
    stream = io.StringIO()
    bars = ArmBars(Console(file=stream, width=80))
    with bars.progress:
        for arm in ("grown", "large"):
            bars.show(ArmPhase(arm, 1000))
            bars.show(ArmStep(arm, 1, 400, 0.1, 2, 1.5, 0.25))
            assert bars.progress.tasks[-1].percentage == 40
            bars.show(ArmEvaluation(arm, 2, 990, 0.2, 1.0, 0.5))
            bars.show(ArmEnd(arm))
            assert bars.progress.tasks[-1].finished
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert [line[:13] for line in lines] == ["grown epoch 2", "large epoch 2"]
    assert all("loss 1.500 train 25.0% test 50.0%" in line for line in lines)
    assert all(len(line) <= 80 for line in lines)


def test_a_recovery_begins_at_the_accuracy_that_its_step_left() -> None:
    stream = io.StringIO()
    bars = RecoveryBars(Console(file=stream, width=80), 2, 3)
    with bars.progress:
        for step in (1, 2):
            bars.begin(step, 9, 0.125)
            assert bars.progress.tasks[-1].fields["test"] == 0.125
            for epoch in (1, 2, 3):
                for _ in range(3):
                    bars.show_step(epoch, 1.5, 0.25)
                bars.show_test(0.5)
            assert bars.progress.tasks[-1].finished
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    assert [line[:18] for line in lines] == ["step 1/2 epoch 3/3", "step 2/2 epoch 3/3"]
    assert all("loss 1.500 train 25.0% test 50.0%" in line for line in lines)
    assert all(len(line) <= 80 for line in lines)
