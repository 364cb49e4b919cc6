from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import click
import pytest
import torch
from torch import Tensor, nn

import splitgrow
from splitgrow.cli.grow_settings import GrowSettings
from splitgrow.demos import arm_tables, datasets
from splitgrow.demos.arm_results import (
    GROWN,
    LARGE,
    SMALL,
    ArmGrowth,
    ArmOutcome,
    ArmPhase,
    ArmStep,
    GrowResult,
)
from splitgrow.demos.chosen_network import network_maker
from splitgrow.demos.growing import _lead, prepare_arms, run
from splitgrow.demos.results import DemoEvent

SETTINGS = GrowSettings(network="mlp", width=0.03, epochs=3, batch_size=16)
RESNET = network_maker("resnet")
MLP = network_maker("mlp")


def _quiet(event: DemoEvent) -> None:
    pass


@pytest.fixture(scope="module")
def finished(dataset: datasets.Dataset) -> tuple[GrowResult, list[DemoEvent]]:
    events: list[DemoEvent] = []
    settings = replace(SETTINGS, network="resnet", width=0.25)
    return run(RESNET, dataset, settings, events.append), events


def test_the_three_networks_train_one_after_the_other(
    finished: tuple[GrowResult, list[DemoEvent]],
) -> None:
    result, events = finished
    assert [e.arm for e in events if isinstance(e, ArmPhase)] == [GROWN, LARGE, SMALL]
    arms = [event.arm for event in events]
    assert arms == sorted(arms, key=[GROWN, LARGE, SMALL].index)
    assert [arm.arm for arm in result.arms] == [GROWN, LARGE, SMALL]


def test_all_train_for_the_same_arithmetic_to_within_a_step(
    finished: tuple[GrowResult, list[DemoEvent]],
) -> None:
    result, _ = finished
    large = result.arm(LARGE)
    assert result.macs == 3 * large.macs_an_image * 64 * 3  # images and epochs
    for arm in result.arms:
        assert abs(arm.macs - result.macs) <= 3 * arm.macs_an_image * 16
    assert result.arm(SMALL).steps > result.arm(GROWN).steps > large.steps


def test_the_policys_own_count_of_arithmetic_is_that_of_the_arm(
    dataset: datasets.Dataset,
) -> None:
    study = prepare_arms(MLP, dataset, SETTINGS, _quiet)
    study.grown.train()
    assert study.grown.grower is not None
    assert study.grown.grower.macs_spent == study.grown.macs


def test_the_large_network_has_the_widths_that_the_grown_one_ends_with(
    finished: tuple[GrowResult, list[DemoEvent]],
) -> None:
    result, _ = finished
    grown, large, small = result.arms
    assert grown.widths == large.widths == result.plan.stages[-1].widths
    assert small.widths == result.plan.start.widths
    inside = {name for name in small.widths if name != "head"}
    assert all(large.widths[name] == 2 * small.widths[name] for name in inside)
    assert large.widths["head"] == small.widths["head"] == 10
    assert grown.parameters == large.parameters > small.parameters
    assert grown.macs_an_image == large.macs_an_image > small.macs_an_image


def test_growths_come_at_their_shares_of_the_arithmetic(
    finished: tuple[GrowResult, list[DemoEvent]],
) -> None:
    result, _ = finished
    assert len(result.growths) == 3
    step = 3 * result.arm(LARGE).macs_an_image * 16
    for growth, share in zip(result.growths, result.settings.shares, strict=True):
        assert 0 <= growth.macs - share * result.macs < step
        assert growth.parameters[1] - growth.parameters[0] == growth.edit.parameters
        assert growth.seconds >= growth.growing >= 0


def test_the_small_network_is_the_grown_one_until_that_grows(
    finished: tuple[GrowResult, list[DemoEvent]],
) -> None:
    result, _ = finished
    first = result.growths[0].step
    losses = {
        arm: [step.loss for step in result.steps if step.arm == arm]
        for arm in (GROWN, LARGE, SMALL)
    }
    assert losses[GROWN][:first] == pytest.approx(losses[SMALL][:first], rel=1e-4)
    assert losses[GROWN][-1] != pytest.approx(losses[SMALL][-1], rel=1e-4)
    assert losses[GROWN][0] != pytest.approx(losses[LARGE][0], rel=1e-4)


def _told(result: GrowResult) -> tuple[object, ...]:
    """All of a result but for its times."""
    return (
        [(step.arm, step.step, step.macs, step.loss) for step in result.steps],
        [(look.arm, look.accuracy) for look in result.evaluations],
        [growth.edit for growth in result.growths],
        result.leads,
    )


def test_the_seed_makes_the_run_and_torchs_own_random_state_is_left(
    dataset: datasets.Dataset,
) -> None:
    state = torch.get_rng_state()
    first = _told(run(MLP, dataset, SETTINGS, _quiet))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(7)
    assert _told(run(MLP, dataset, SETTINGS, _quiet)) == first
    assert _told(run(MLP, dataset, replace(SETTINGS, seed=1), _quiet)) != first


def test_a_plateau_is_decided_on_training_images_that_nobody_trains_on(
    dataset: datasets.Dataset,
) -> None:
    settings = replace(SETTINGS, shares=(), plateau=1, learning_rate=1e-9)  # nothing gets better
    result = run(MLP, dataset, settings, _quiet)
    assert (result.images, result.held_out) == ((54, 360), 10)
    assert result.growths
    epochs = {
        step.step: step.epoch
        for step, after in zip(result.steps, result.steps[1:], strict=False)
        if step.arm == GROWN and after.epoch != step.epoch
    }
    assert {growth.step for growth in result.growths} <= {*epochs}
    assert any("held out" in remark for remark in arm_tables.remarks(result))


def test_images_that_are_too_few_to_hold_some_out_are_refused() -> None:
    few = datasets.load_dataset(None, limit=10)
    with pytest.raises(click.UsageError, match="holds out an image of each class, and leaves none"):
        run(MLP, few, replace(SETTINGS, shares=(), plateau=1), _quiet)


def test_growths_that_do_not_come_are_told(dataset: datasets.Dataset) -> None:
    result = run(MLP, dataset, replace(SETTINGS, shares=(), plateau=1000), _quiet)
    assert result.growths == ()
    assert result.arm(LARGE).widths != result.arm(GROWN).widths
    assert "Only 0 of 3 growths came" in arm_tables.verdict(result)
    assert [row[2] for row in arm_tables.plan_lines(result)] == ["", *["did not come"] * 3]


def test_a_score_chooses_and_the_large_network_follows(dataset: datasets.Dataset) -> None:
    result = run(MLP, dataset, replace(SETTINGS, score="gain", share=0.5), _quiet)
    grown, large, _ = result.arms
    assert grown.widths == large.widths != result.plan.stages[-1].widths
    for arm in result.arms:
        assert abs(arm.macs - result.macs) <= 3 * arm.macs_an_image * 16
    assert any("A score chose the layers" in remark for remark in arm_tables.remarks(result))


def test_a_frozen_past_stays_and_the_report_says_that_it_is_not_meant_for_this(
    dataset: datasets.Dataset,
) -> None:
    study = prepare_arms(MLP, dataset, replace(SETTINGS, freeze=True), _quiet)
    study.grown.train()
    fixed = [p for p in study.grown.model.parameters() if not p.requires_grad]
    assert fixed
    result = run(MLP, dataset, replace(SETTINGS, freeze=True), _quiet)
    assert "not for growing towards a size" in arm_tables.verdict(result)


@pytest.mark.parametrize("init", ["pair", "gradient"])
def test_initializers_work_with_or_without_data(dataset: datasets.Dataset, init: str) -> None:
    settings = replace(SETTINGS, init=init, width=0.05, warmup=2, lr_scale=0.5, epochs=1)
    result = run(MLP, dataset, settings, _quiet)
    assert [growth.edit.initializer for growth in result.growths] == [init] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shares": (), "every": 1000}, "--every 1000 puts growth 3 behind the end"),
        ({"only": ("nothing",)}, "no layer 'nothing'"),
        ({"factor": None, "params": 10}, "larger than Budget"),
        ({"factor": None, "params": 500}, "would shrink"),
        ({"freeze": True, "init": "net2net"}, "changes values that exist"),
        ({"factor": 1.0001}, "nothing would grow"),
    ],
)
@pytest.mark.filterwarnings("ignore:nothing will grow")
def test_settings_that_the_network_does_not_allow_are_refused_before_training(
    dataset: datasets.Dataset, change: dict[str, object], message: str
) -> None:
    events: list[DemoEvent] = []
    with pytest.raises(click.UsageError, match=message):
        run(MLP, dataset, replace(SETTINGS, **change), events.append)
    assert events == []


class _Tuple(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor]:  # type: ignore[override]
        return (super().forward(x.flatten(1)),)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 9)), r"\(2, 9\) for two images, not \(2, 10\)"),
        (nn.Linear(5, 5), "Linear is no classifier of these 1x8x8 images"),
        (_Tuple(64, 10), "no attribute 'logits'"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "no layer may grow"),
    ],
)
def test_a_network_that_is_no_classifier_or_cannot_grow_is_refused(
    dataset: datasets.Dataset, network: nn.Module, message: str
) -> None:
    with pytest.raises(click.ClickException, match=message):
        run(lambda *_: network, dataset, SETTINGS, _quiet)


def test_a_lead_is_judged_image_by_image() -> None:
    outcome = ArmOutcome(GROWN, 0.5, 1.0, 1, 1.0, 1, 1, 1, {})
    ours = torch.tensor([True, True, True, False])
    theirs = torch.tensor([True, False, False, False])
    lead = _lead((outcome, ours), (replace(outcome, arm=LARGE), theirs))
    assert (lead.other, lead.points) == (LARGE, 50.0)
    assert lead.standard_error == pytest.approx(25.0)  # deviation 50, over the root of 4
    same = _lead((outcome, ours), (outcome, ours))
    assert (same.points, same.standard_error) == (0.0, 0.0)


def test_a_models_own_values_do_not_matter_since_all_start_from_scratch(
    dataset: datasets.Dataset,
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))
    losses = []
    for value in (0.0, 5.0):
        for parameter in net.parameters():
            nn.init.constant_(parameter, value)
        study = prepare_arms(lambda *_, net=net: net, dataset, SETTINGS, _quiet)
        losses.append(study.grown.judge(study.grown.logits(study.grown.model)))
        net = splitgrow.merge(study.start)
    assert losses[0] == losses[1]


def test_events_of_an_arm_are_told_as_they_happen(
    finished: tuple[GrowResult, list[DemoEvent]],
) -> None:
    result, events = finished
    at = {id(event): place for place, event in enumerate(events)}
    steps = {step.step: at[id(step)] for step in result.steps if step.arm == GROWN}
    for growth in result.growths:
        assert isinstance(events[at[id(growth)]], ArmGrowth)
        assert at[id(growth)] == steps[growth.step] + 1
    assert all(isinstance(step, ArmStep) for step in result.steps)


def test_a_network_of_ones_own_is_made_once_with_the_seed(
    tmp_path: Path, dataset: datasets.Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "own_network.py"
    path.write_text("from torch import nn\ndef make():\n    return nn.Linear(3, 2)\n")
    state = torch.get_rng_state()
    first, again = (network_maker(f"{path}:make", seed=4) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first(dataset, SETTINGS).weight, again(dataset, SETTINGS).weight)
    other = network_maker(f"{path}:make", seed=5)
    assert not torch.equal(first(dataset, SETTINGS).weight, other(dataset, SETTINGS).weight)
