"""Policies that shrink: what was planned happens, and the weakest units go."""

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
from helpers import assert_equal
from torch import Tensor, nn

import splitgrow
from splitgrow import All, Budget, Cycles, Every, Factor, Score, ToWidths
from splitgrow.growth.multiply_adds import MacsCounter
from splitgrow.handle import Handle

CHECKED = [
    case
    for case in CASES
    if case.name
    in {"residual", "dense", "shuffled", "fused heads", "vision transformer", "tagger", "deciding"}
]


@pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.name)
def test_the_plan_is_what_happens_step_by_step(case) -> None:
    model = splitgrow.growable(case.model(), case.inputs())
    grower = policy(model, to=Factor(0.4), when=Every(1))
    changed = 0
    for shrink in grower.plan().growths:
        edit = grower.step()
        assert (edit is None) == (not shrink.request)
        changed += edit is not None
        parameters = sum(parameter.numel() for parameter in model.parameters())
        found = widths(model), parameters, MacsCounter(model).macs
        assert (shrink.widths, shrink.parameters, shrink.macs) == found
        assert grower.macs == shrink.macs
    assert changed
    assert grower.done


@pytest.mark.parametrize("seed", range(8))
def test_random_policies_do_as_planned_on_models_that_have_grown(seed) -> None:
    """The sizes are those that formulas give by hand."""
    draw = random.Random(seed)
    model = convolutional(seed)
    model.expand({"0": 4, "6": 6}, freeze=False)  # blocks that get narrower
    to = draw.choice(
        [
            Factor(0.2 + 0.7 * draw.random()),
            ToWidths({"0": draw.randint(1, 11), "6": draw.randint(1, 15)}),
            Budget(params=draw.randint(400, 4_000)),
            Budget(macs=draw.randint(4_000, 35_000)),
        ]
    )
    steps, every = draw.randint(1, 4), draw.randint(1, 3)
    grower = policy(model, to=to, steps=steps, when=Every(every))
    spent = 0
    for step in range(1, steps * every + 2):
        spent += 3 * 5 * grower.macs
        edit = grower.step()
        due = [shrink for shrink in grower.plan().growths if shrink.step == step]
        assert (edit is not None) == any(shrink.request for shrink in due)
        for shrink in due:
            now = widths(model)
            assert now == shrink.widths
            ours = now["0"], now["3"], now["6"]
            assert shrink.macs == multiply_adds_of(*ours)
            assert shrink.parameters == parameters_of(*ours)
            assert shrink.macs_spent == spent == grower.macs_spent
    assert grower.done


def test_a_factor_takes_each_layer_to_the_nearest_width_by_equal_factors() -> None:
    plan = policy(convolutional(), to=Factor(0.125), steps=3).plan()
    assert [shrink.widths["0"] for shrink in plan.growths] == [4, 2, 1]
    assert [shrink.shrinks for shrink in plan.growths] == [True] * 3
    plan = policy(convolutional(), to=Factor(0.6), steps=1, round_to=4).plan()
    assert [plan.growths[0].widths[name] for name in ("0", "3", "6")] == [4, 8, 8]
    assert str(plan).startswith("1 shrink to 0.6 times the widths")


# -- the weakest units go --------------------------------------------------------------------------


def strengths(model: Any) -> dict[str, Tensor]:
    """The sum of squares of the weights that make or read each unit, by hand."""
    first, second, third, last = (model[n].weight.detach() for n in (0, 3, 6, 8))
    per_channel = third.reshape(len(third), len(second), -1)
    found = {
        "0": first.square().sum((1, 2, 3)) + second.square().sum((0, 2, 3)),
        "3": second.square().sum((1, 2, 3)) + per_channel.square().sum((0, 2)),
        "6": third.square().sum(1) + last.square().sum(0),
    }
    return {name: values.sqrt() for name, values in found.items()}


def gone(edit: Any, name: str) -> set[int]:
    (removal,) = (item for item in edit.removed if item.name == name)
    return {n for start, count in removal.outs for n in range(start, start + count)}


def test_the_units_with_the_lowest_scores_go() -> None:
    model = convolutional()
    scores = strengths(model)
    edit = policy(model, to=Factor(0.5), when=Every(1), steps=1).step()
    for name, own in scores.items():
        assert gone(edit, name) == {*own.argsort()[: len(own) // 2].tolist()}


def test_control_by_another_criterion_other_units_go() -> None:
    found = []
    for criterion in ("group", "random", splitgrow.pruning.Magnitude(1)):
        torch.manual_seed(1)
        grower = policy(
            convolutional(), to=Factor(0.5), when=Every(1), steps=1, criterion=criterion
        )
        torch.manual_seed(1)
        found.append(gone(grower.step(), "3"))
    assert found[0] != found[1]
    assert found[2] != found[1]


def test_a_criterion_that_needs_data_asks_the_loss() -> None:
    model, calls = convolutional(), []

    def loss() -> Tensor:
        calls.append(1)
        return model(images(5)).square().mean()

    def loss_on(model: Any, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    twin = convolutional()
    edit = policy(
        model, to=Factor(0.5), when=Every(1), steps=1, criterion="taylor", loss=loss
    ).step()
    other = twin.prune(0.5, scope="layer", criterion="taylor", loss=loss_on, batches=[images(5)])
    assert calls
    assert edit.removed == other.removed


def test_a_criterion_leaves_no_trace_in_the_random_numbers_of_a_training() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    model = convolutional()
    torch.manual_seed(3)
    policy(model, to=Factor(0.5), criterion="random")
    assert torch.equal(torch.rand(2), expected)


# -- the training goes on --------------------------------------------------------------------------


def test_optimizer_and_scheduler_follow_and_the_training_goes_on() -> None:
    model = convolutional()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    grower = policy(model, optimizer, scheduler, to=Factor(0.5), when=Every(2))
    for step in range(1, 9):
        train_step(model, optimizer, step)
        scheduler.step()
        grower.step()
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert trained == {id(parameter) for parameter in model.parameters()}
        assert all(optimizer.state[p]["exp_avg"].shape == p.shape for p in model.parameters())
    assert optimizer.param_groups[0]["lr"] == 1e-2 / 16


def test_callbacks_get_the_edit_and_a_shrink_that_fails_comes_again(monkeypatch) -> None:
    seen: list[Any] = []
    model = convolutional()
    grower = policy(model, to=Factor(0.5), when=Every(1), callbacks=seen.append)
    before = grower.state_dict()

    def fails(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(Handle, "shrink", fails)
        with pytest.raises(MemoryError):
            grower.step()
    assert grower.state_dict() == before
    assert seen == []
    edit = grower.step()
    assert seen == [edit]
    assert all(units < 0 for units in edit.request.values())


def test_a_model_that_was_changed_by_hand_comes_to_the_widths_of_the_plan() -> None:
    model = convolutional()
    grower = policy(model, to=Factor(0.5), when=Every(1), steps=2)
    model.shrink({"0": 3})
    model.expand({"3": 5}, freeze=False)
    grower.step()
    assert widths(model) == {**grower.plan().growths[0].widths, "0": 5}
    grower.step()
    assert widths(model) == grower.plan().growths[1].widths


# -- what cannot be is refused before the training -------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"freeze": True}, "freeze=False"),
        ({"where": Score(lambda net: {**widths(net)})}, "the criterion says"),
        ({"criterion": "weights"}, "no criterion 'weights'"),
        ({"criterion": "taylor"}, "needs data: give it a `loss`"),
        ({"criterion": "scale"}, "has no scores for the units of 3, 6"),
        ({"to": ToWidths({"0": 4, "3": 20})}, "`3` would grow and `0` shrink"),
        ({"to": ToWidths({"0": 0})}, "has 8 units, and the goal 0"),
    ],
)
def test_bad_settings_are_refused_before_training_and_nothing_changes(changes, message) -> None:
    model = convolutional()
    with pytest.raises(ValueError, match=message):
        policy(model, sgd(model), **{"to": Factor(0.5), **changes})
    assert not splitgrow.handle(model).edits


def test_widths_that_no_units_leave_are_refused_with_those_that_fit() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(4, 2, 1))
    model = splitgrow.growable(net, torch.randn(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"`0` cannot have 3 units: .* are 4 and 2"):
        policy(model, to=ToWidths({"0": 3}))
    assert policy(model, to=ToWidths({"0": 4}), steps=1).plan().growths[0].widths["0"] == 4


def test_units_of_closed_generations_stay() -> None:
    model = convolutional()
    model.expand({"0": 4})
    with pytest.raises(ValueError, match="closed generations have to stay"):
        policy(model, to=Factor(0.5))
    policy(model, to=Factor(1.5))  # what grows takes nothing away


def test_layers_that_the_optimizer_does_not_train_shrink_as_well() -> None:
    model = convolutional()
    grower = policy(model, sgd(model[8]), to=Factor(0.5), when=Every(1), steps=1)
    grower.step()
    assert widths(model)["0"] == 4


def test_only_layers_that_are_named_shrink() -> None:
    plan = policy(convolutional(), to=Factor(0.5), where=All(only="3"), steps=1).plan()
    assert plan.growths[0].widths == {"0": 8, "3": 6, "6": 10, "8": 4}


def test_units_that_a_goal_has_too_many_are_told_for_shrink() -> None:
    model = convolutional()
    assert Factor(0.5).surplus(model) == {"0": 4, "3": 6, "6": 5}
    assert Factor(0.5).surplus(model, where=All(only="6")) == {"6": 5}
    model.shrink(Budget(params=1_500).surplus(model, round_to=2))
    assert parameters_of(*[*widths(model).values()][:3]) <= 1_500
    for tell, to, message in [
        (Factor(2.0).surplus, Factor(2.0), "is larger than the model"),
        (Factor(0.5).request, Factor(0.5), "is smaller than the model"),
        (Cycles(Budget(params=1_500)).surplus, None, "takes several"),
    ]:
        del to
        with pytest.raises(ValueError, match=message):
            tell(model)


def test_a_compiled_model_shrinks() -> None:
    model = convolutional()
    compiled = torch.compile(model, backend="eager")
    compiled(images(5))
    grower = policy(compiled, sgd(model), to=Factor(0.5), when=Every(1))
    grower.step()
    assert widths(model) == grower.plan().growths[0].widths
    assert_equal(compiled(images(5)), model(images(5)))
