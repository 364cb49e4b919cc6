"""Policies at work: what was planned happens, step by step, or nothing does."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from cases import CASES
from grown_policies import (
    convolutional,
    images,
    multiply_adds_of,
    parameters_of,
    policy,
    sgd,
    train_step,
    widths,
)
from helpers import assert_equal, outputs_of
from torch import nn

import splitgrow
from splitgrow import (
    Budget,
    ComputeShares,
    Every,
    Factor,
    FixedWidthError,
    Gap,
    Grower,
    OptimizerError,
    Plateau,
    SplitGrowError,
    ToWidths,
)
from splitgrow.grower import When
from splitgrow.growth.multiply_adds import MacsCounter
from splitgrow.handle import Handle

CHECKED = [
    case
    for case in CASES
    if case.name
    in {"residual", "dense", "u-net", "shuffled", "fused heads", "vision transformer", "tagger"}
]


def sizes(model: Any) -> tuple[dict[str, int], int, int]:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return widths(model), parameters, MacsCounter(model).macs


# -- what is planned happens -----------------------------------------------------------------------


@pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.name)
def test_the_plan_is_what_happens_step_by_step(case) -> None:
    model = splitgrow.growable(case.model(), case.inputs())
    grower = policy(model, when=Every(1))
    plan, before = grower.plan(), outputs_of(model, *case.inputs())
    assert (plan.start.widths, plan.start.parameters, plan.start.macs) == sizes(model)
    for growth in plan.growths:
        assert not grower.done
        edit = grower.step()
        assert (edit is None) == (not growth.request)
        assert (growth.widths, growth.parameters, growth.macs) == sizes(model)
        assert grower.macs == growth.macs
    assert grower.done
    assert grower.step() is None
    assert_equal(outputs_of(model, *case.inputs()), before)


@pytest.mark.parametrize("seed", range(12))
def test_random_policies_do_as_planned(seed) -> None:
    draw = random.Random(seed)
    model = convolutional(seed)
    to = draw.choice(
        [
            Factor(1 + 3 * draw.random()),
            ToWidths({"0": draw.randint(8, 30), "6": draw.randint(10, 40)}),
            Budget(params=draw.randint(4_000, 40_000)),
            Budget(macs=draw.randint(60_000, 300_000)),
        ]
    )
    steps, every = draw.randint(1, 4), draw.randint(1, 3)
    grower = policy(model, to=to, steps=steps, when=Every(every))
    plan, spent = grower.plan(), 0
    for step in range(1, steps * every + 3):
        spent += 3 * 5 * grower.macs
        edit = grower.step()
        due = [growth for growth in plan.growths if growth.step == step]
        assert (edit is not None) == any(growth.request for growth in due)
        for growth in due:
            now = widths(model)
            assert now == growth.widths
            ours = now["0"], now["3"], now["6"]
            assert growth.macs == multiply_adds_of(*ours)
            assert growth.parameters == parameters_of(*ours)
            assert growth.macs_spent == spent
        assert grower.macs_spent == spent
    assert grower.done


def test_control_a_growth_by_hand_is_seen_in_the_multiply_adds_and_keeps_the_goal() -> None:
    model = convolutional()
    grower = policy(model, when=Every(1), steps=2)
    planned = grower.plan().growths
    model.expand_layer("0", 6, freeze=False)
    assert grower.macs == multiply_adds_of(14, 12, 10) != planned[0].macs
    grower.step()
    assert widths(model) == {**planned[0].widths, "0": 14}
    grower.step()
    assert widths(model) == planned[1].widths


def test_widths_between_are_geometric() -> None:
    plan = policy(convolutional(), to=Factor(8.0), steps=3).plan()
    assert [growth.widths["0"] for growth in plan.growths] == [16, 32, 64]


def test_shares_of_the_arithmetic_are_kept_by_counting_samples() -> None:
    model = convolutional()
    start = multiply_adds_of(8, 12, 10)
    total = 3 * start * 1000
    grower = policy(model, when=ComputeShares([0.1, 0.2], macs=total))
    assert len(grower.plan().growths) == 2
    assert [g.macs_spent for g in grower.plan().growths] == [total // 10, total // 5]
    assert grower.step(samples=99) is None
    assert grower.macs_spent == 3 * start * 99
    assert grower.step(samples=1) is not None
    assert grower.step(samples=0) is None
    larger = grower.macs
    needed = -(-(total // 5 - grower.macs_spent) // (3 * larger))
    assert grower.step(samples=needed - 1) is None
    assert grower.step(samples=1) is not None
    assert grower.done


def test_metrics_decide_and_a_growth_starts_anew() -> None:
    model = convolutional()
    grower = policy(model, when=Plateau("loss", patience=2), steps=2)
    losses = [1.0, None, 1.0, 1.0, 2.0, 2.0, torch.tensor(2.0)]
    edits = [grower.step(None if x is None else {"loss": x, "other": 0}) for x in losses]
    assert [n for n, edit in enumerate(edits) if edit is not None] == [3, 6]
    assert "loss stalls for 2" in str(grower.plan())


class Third(When):
    """A rule of one's own that keeps notes."""

    growths = 2

    def due(self, now) -> bool:
        now.notes["seen"] = now.notes.get("seen", 0) + 1
        return now.notes["seen"] == 3

    def __repr__(self) -> str:
        return "Third()"


def test_a_rule_of_ones_own_says_when() -> None:
    grower = policy(convolutional(), when=Third())
    edits = [grower.step() for _ in range(7)]
    assert [n for n, edit in enumerate(edits) if edit] == [2, 5]


def test_callbacks_get_the_edit_and_their_errors_come_through() -> None:
    seen = []
    model = convolutional()
    grower = policy(model, when=Every(1), callbacks=[seen.append])
    assert seen == [grower.step()] == [*model.edits] if hasattr(model, "edits") else True

    def fails(edit: object) -> None:
        raise RuntimeError("enough")

    grower = policy(model, when=Every(1), callbacks=fails, steps=2)
    with pytest.raises(RuntimeError, match="enough"):
        grower.step()
    assert widths(model) == grower.plan().growths[0].widths  # the growth itself stays
    with pytest.raises(RuntimeError, match="enough"):
        grower.step()
    assert grower.done


def test_a_compiled_model_grows() -> None:
    model = convolutional()
    compiled = torch.compile(model, backend="eager")
    compiled(images(5))
    grower = policy(compiled, sgd(model), when=Every(1))
    grower.step()
    assert widths(model) == grower.plan().growths[0].widths
    assert_equal(compiled(images(5)), model(images(5)))


# -- what fails changes nothing --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"to": 2.0}, TypeError, "to must be Factor"),
        ({"when": 100}, TypeError, "when must be Every"),
        ({"where": "all"}, TypeError, "where must be All"),
        ({"steps": 0}, ValueError, "steps"),
        ({"steps": 2.5}, TypeError, "steps"),
        ({"steps": 3, "when": ComputeShares([0.5], macs=1)}, ValueError, "contradicts"),
        ({"init": "zeros"}, ValueError, "no initializer"),
        ({"lr_scale": -1}, ValueError, "lr_scale"),
        ({"warmup": -1}, ValueError, "warmup"),
        ({"round_to": 0}, ValueError, "round_to"),
        ({"callbacks": [3]}, TypeError, "callbacks"),
        ({"freeze": True, "absorb": True}, ValueError, "absorb=False"),
        ({"loss": 3}, TypeError, "loss"),
        ({"optimizer": 3}, TypeError, "optimizer"),
        ({"scheduler": 3}, TypeError, "scheduler"),
        ({"init": "gradient"}, ValueError, "needs data"),
    ],
)
def test_bad_settings_are_refused_before_training_and_nothing_changes(
    changes, error, message
) -> None:
    model = convolutional()
    optimizer = changes.pop("optimizer", None) or sgd(model)
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(error, match=message):
        policy(model, optimizer, **changes)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert not splitgrow.handle(model).edits


def test_a_model_that_is_not_growable_is_refused() -> None:
    with pytest.raises(SplitGrowError, match="not growable yet"):
        policy(nn.Linear(2, 3))


def test_an_optimizer_of_another_model_is_refused_before_training() -> None:
    with pytest.raises(OptimizerError, match=r"does not train 0, .*model.parameters\(\)"):
        policy(convolutional(), sgd(nn.Linear(2, 3)))


def test_a_width_that_will_not_fit_is_found_before_training() -> None:
    model = splitgrow.growable(
        nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(4, 2, 1)),
        torch.randn(2, 3, 4, 4),
    )
    with pytest.raises(ValueError, match="nearest widths"):
        policy(model, to=ToWidths({"0": 9}), steps=3, when=Every(10_000))
    with pytest.raises(FixedWidthError, match="no layer may grow"):
        policy(model, where=splitgrow.All(except_="*"))


def everything(model: Any, optimizer: Any, grower: Grower) -> Any:
    values = {name: value.clone() for name, value in model.named_parameters()}
    groups = [[id(p) for p in group["params"]] for group in optimizer.param_groups]
    return values, groups, grower.state_dict(), len(splitgrow.handle(model).edits)


def assert_the_same(one: Any, other: Any) -> None:
    assert one[1:] == other[1:]
    assert one[0].keys() == other[0].keys()
    assert all(torch.equal(value, other[0][name]) for name, value in one[0].items())


@pytest.mark.parametrize("failing", ["expand", "absorb"])
def test_a_growth_that_fails_leaves_all_as_it_was_and_comes_again(failing, monkeypatch) -> None:
    model = convolutional()
    optimizer = sgd(model)
    grower = policy(model, optimizer, when=Every(1), absorb=True)

    def fails(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("no more")

    train_step(model, optimizer, 1)
    before = everything(model, optimizer, grower)
    with monkeypatch.context() as patch:
        patch.setattr(Handle, failing, fails)
        with pytest.raises(MemoryError):
            grower.step()
        assert_the_same(everything(model, optimizer, grower), before)
    assert grower.step() is not None
    assert widths(model) == grower.plan().growths[0].widths


def test_metrics_that_mean_nothing_are_refused_and_the_step_does_not_count() -> None:
    grower = policy(convolutional(), when=Gap("train", "val", threshold=1.0))
    before = grower.state_dict()
    for metrics, error in [
        ([1], TypeError),
        ({"train": "x"}, TypeError),
        ({"train": 1}, ValueError),
    ]:
        with pytest.raises(error):
            grower.step(metrics)
    for samples, error in [(1.5, TypeError), (-1, ValueError)]:
        with pytest.raises(error):
            grower.step(samples=samples)
    assert grower.state_dict() == before


def test_what_is_left_to_nothing_is_told() -> None:
    with pytest.warns(splitgrow.SplitGrowWarning, match="nothing will grow"):
        grower = policy(convolutional(), to=Budget(params=parameters_of(8, 12, 10) + 1))
    assert grower.done
    assert grower.step() is None
