"""DEN: only chosen weights train, added units are useful, and drift is bounded."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import CASES, Case
from helpers import assert_equal, assert_identical, largest_difference
from lessons import BODIES, Featured, images, learner, net, outputs, scattered, task
from torch import Tensor, nn

from splitgrow.analysis.units import CONSTANT, Unit
from splitgrow.continual import DEN, EpochDone, Grown, Judged, Task, Training
from splitgrow.continual.body import Body
from splitgrow.continual.proximal import lower_, pull_, pull_back_, shrink_, soften_
from splitgrow.continual.regrowth import (
    Drawn,
    UnitValues,
    disconnect_,
    draw_head_,
    regrow_,
    split_,
    widened_head,
    without_,
)
from splitgrow.continual.selective import Course
from splitgrow.continual.studies import Study, TaskView
from splitgrow.continual.units import Units
from splitgrow.utils.example_call import ExampleCall

FAST = Training(epochs=3, batch_size=16, lr=0.05)
SOME = [
    case
    for case in CASES
    if case.name
    in {
        "residual",
        "dense",
        "bottleneck",
        "squeeze and excite",
        "u-net",
        "conv to linear",
        "1-d",
        "mlp",
        "partly fixed",
        "vision transformer",
        "decoder",
    }
]


def den(**more: Any) -> Any:
    return learner("den", **{"training": FAST, "pull": 0.02, **more})


def plain_at(body: Body, edit: int) -> Any:
    """The network of a time, as a model of the user's class."""
    return body.plain({}, edit, nn.Identity())


def rows_of(network: Any) -> dict[str, Tensor]:
    """Every unit's incoming weights in the small network, put together by hand.

    The stem and the convolution of the residual path make the same units.
    """
    both = [network.stem.weight, network.inner.weight]
    joined = torch.cat([weight.detach().double().flatten(1) for weight in both], 1)
    return {"stem": joined, "hidden": network.hidden.weight.detach().double()}


def drifts_of(made: Any, tasks: int) -> list[float]:
    """By how much any unit drifts while each task is learned, over the weights there were."""
    found = []
    for index in range(tasks):
        body, edit = made.body, made.body.edit
        before = rows_of(plain_at(body, edit))
        made.learn(task(index))
        after = rows_of(plain_at(made.body, edit))
        apart = [float((after[name] - rows).norm(dim=1).max()) for name, rows in before.items()]
        found.append(max(apart))
    return found[1:]


@pytest.mark.parametrize("sigma", [0.0, 0.01, 0.03])
def test_no_unit_of_earlier_tasks_ever_drifts_by_more_than_the_threshold(sigma: float) -> None:
    made = den(drift=sigma)
    drifts = drifts_of(made, 4)
    assert max(drifts) <= sigma
    assert any("split" in record.details for record in made.records)
    for record, drift in zip(made.records[1:], drifts, strict=True):
        assert record.details["drift"] == pytest.approx(drift, abs=1e-12)


def test_the_check_notices_drift_that_nothing_bounds() -> None:
    """The control: units drift by more if they are never split."""
    assert min(drifts_of(den(drift=math.inf), 3)) > 0.03


def changed(made: Any, index: int) -> set[str]:
    before = outputs(made)
    made.learn(task(index))
    after = outputs(made)
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def test_without_drift_no_task_is_ever_forgotten_by_a_bit() -> None:
    made = den(drift=0.0)
    made.learn(task(0))
    for index in range(1, 4):
        assert not changed(made, index)
    assert made.report().expansion > 1.5


def test_the_check_notices_what_is_forgotten() -> None:
    made = den(drift=math.inf)
    made.learn(task(0))
    assert changed(made, 1) == {"task 0"}


def choose(made: Any, choice: Callable[[Units], frozenset[Unit]]) -> None:
    """Has a learner choose other units than the task needs."""
    select = made._select

    def selected(course: Course) -> None:
        select(course)
        course.chosen = choice(course.units)

    made._select = selected


def test_a_task_whose_weights_are_not_retrained_stays_bit_for_bit() -> None:
    made = den(drift=0.1, group_lasso=0.0)
    made.learn(task(0))
    choose(made, lambda units: units.since(units))  # none
    assert not changed(made, 1)
    assert made.body.edit > made.records[0].edit
    choose(made, lambda units: frozenset(units.order))
    assert changed(made, 2) == {"task 0", "task 1"}


@pytest.mark.parametrize("sigma", [math.inf, 0.03])
def test_weights_that_are_not_between_chosen_units_stay_bit_for_bit(sigma: float) -> None:
    made = den(drift=sigma)
    made.learn(task(0))
    chosen: dict[str, list[int]] = {"stem": [1, 4], "hidden": [0, 3, 5]}

    def some(units: Units) -> frozenset[Unit]:
        stem, hidden = units.growing
        homes = {"stem": stem, "hidden": hidden}
        return frozenset(Unit(homes[name], n) for name, own in chosen.items() for n in own)

    choose(made, some)
    before = plain_at(made.body, 0)
    record = made.learn(task(1))
    after = plain_at(made.body, 0)
    stem, hidden = chosen.values()
    read = record.head.weight.ne(0).any(0).nonzero().flatten().tolist()
    assert {*read} & {*range(8)} <= {*hidden}
    flat = [4 * n + k for n in stem for k in range(4)]
    for name, rows, columns in (
        ("stem", stem, []),  # the input was not among them
        ("inner", stem, stem),
        ("hidden", hidden, flat),
    ):
        old, new = getattr(before, name).weight, getattr(after, name).weight
        differs = (old != new).flatten(2).any(2) if old.dim() > 2 else old != new
        may = torch.zeros_like(differs)
        for row in rows:
            may[row, columns] = True
        assert not differs[~may].any()
        assert differs[may].any() or not may.any()


def test_what_is_chosen_is_what_the_head_reads_through_weights_that_are_not_zero() -> None:
    """By hand, on two layers: one unit of the last layer, and what it reads."""
    made: Any = DEN(
        nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)),
        torch.randn(2, 3),
        select_epochs=0,
        training=FAST,
        threshold=0.95,
    )
    x = torch.randn(40, 3)
    made.learn(Task("a", 2, (x, (x[:, 0] > 0).long())))
    with torch.no_grad():
        made.body.slots["2:0.weight"].tensor.zero_()[1, [0, 3]] = 0.5
    new_head = made._new_head

    def sparse(classes: int) -> nn.Linear:
        head = new_head(classes)
        head.weight.data[:, [0, 2, 3]] = 0
        return head

    made._new_head = sparse
    record = made.learn(Task("b", 2, (x, (x[:, 1] > 0).long())))
    assert record.details["selected"] == {"0": 2, "2": 1}


def test_the_more_the_head_is_to_be_sparse_the_fewer_units_are_chosen() -> None:
    counts = []
    for l1 in (0.0, 0.05, 0.1):
        made = den(units=0, drift=math.inf, select_epochs=8)
        made.learn(task(0))
        made.l1 = l1
        counts.append(made.learn(task(1)).details["selected"]["hidden"])
    assert counts[0] == 8 > counts[1] > counts[2] > 0


# -- expansion ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("penalty", "kept"), [(0.0, 2), (1e3, 0)])
def test_expansion_adds_as_many_units_as_asked_and_keeps_those_of_use(
    penalty: float, kept: int
) -> None:
    grown: list[Any] = []
    made = den(group_lasso=penalty, l1=0.0, drift=math.inf, callbacks=[grown.append])
    made.learn(task(0))
    record = made.learn(task(1))
    assert record.details["added"] == {"stem": kept, "inner": kept, "hidden": kept}
    assert record.details["removed"] == dict.fromkeys(("stem", "inner", "hidden"), 2 - kept)
    network = made.network("task 1", compact=False)
    assert network.stem.out_channels == 6 + kept
    assert network.hidden.out_features == 8 + kept
    assert any(isinstance(event, Grown) for event in grown) == (kept > 0)


def test_a_task_that_reaches_its_threshold_adds_nothing() -> None:
    made = den(
        threshold={"task 1": 0.51, "task 2": 1.0},
        drift=math.inf,
        training=Training(epochs=20, batch_size=16, lr=0.05),
    )
    records = [made.learn(task(index)) for index in range(3)]
    assert "added" not in records[1].details
    assert "added" in records[2].details
    with pytest.raises(ValueError, match="no threshold is given for task 'task 3'"):
        made.learn(task(3))
    assert made.tasks == ("task 0", "task 1", "task 2")


def test_without_a_threshold_a_task_is_to_reach_what_a_network_reaches_alone() -> None:
    judged: list[Judged] = []
    made = den(
        threshold=None,
        callbacks=[lambda event: judged.append(event) if isinstance(event, Judged) else None],
    )
    records = [made.learn(task(index)) for index in range(2)]
    (alone,) = (event for event in judged if event.stage == "alone")
    assert alone.task == "task 1"  # the first has nothing to grow beyond
    assert records[1].details["goal"] == alone.accuracy
    assert {event.goal for event in judged if event.stage == "retrain"} == {alone.accuracy}


def test_no_expansion_begins_at_the_largest_size() -> None:
    for largest, added in ((1.0, False), (1.01, True)):
        made = den(threshold=1.0, drift=math.inf, group_lasso=0.0, l1=0.0, largest=largest)
        records = [made.learn(task(index)) for index in range(3)]
        assert ("added" in records[1].details) == added
        assert "added" not in records[2].details
        assert (made.body.size > made.body.weights) == added


@torch.no_grad()
def output(body: Body, values: dict[str, Tensor], head: nn.Module, x: Any) -> Tensor:
    body.model.eval()
    with body.reading(values) as model:
        found: Tensor = head(model(*x))
    return found


NORM_LAST = Case(
    "norm last",
    lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 5, 1), nn.Sigmoid()),
    (2, 2, 5, 5),
)
"""Units that are silent before it are none behind it."""


@pytest.mark.parametrize("case", [*BODIES, NORM_LAST], ids=lambda case: case.name)
def test_taking_out_units_that_are_of_no_use_changes_nothing(case: Case) -> None:
    body = scattered(Body(Featured(case.model()), ExampleCall(case.inputs()), None))
    first, x, known = Units(body), case.inputs(5), {*body.slots}
    before = body.plain({}, 0, body.new_head(2))
    growth = dict.fromkeys(first.growing, 3)
    kept = {name: slot.tensor.clone() for name, slot in body.slots.items()}
    if growth:
        body.grow_units(growth)
    new = [name for name in body.shared if name not in known]
    scattered(body, 1).set_values(kept)
    wider, fresh = Units(body), Units(body).since(first)
    mine = {n: torch.ones_like(body.slots[n].tensor, dtype=torch.bool) for n in new}
    study = Study(body, TaskView(mine=mine), {}, body.new_head(2))
    weights = {name: study.weight(name) for name in new}
    # Of each group the units in the middle go; of one group, all.
    gone = {unit for unit in fresh if unit.nth == first.width(unit.home) + 1}
    gone |= {unit for unit in fresh if unit.home == first.growing[-1]}
    groups = {**weights, **{p.slot: study.own_parameters[p.slot] for p in wider.scales}}
    wider.resize_(groups, 1.0 - wider.marks(gone).double())
    dead = wider.marks(fresh) & (wider.sizes(groups) == 0)
    assert wider.chosen(dead) == gone
    disconnect_(wider, study, weights, dead)
    study.eval()
    with torch.no_grad():
        wanted = study(*x)
    body.set_values({name: value for name, value in study.values().items() if name in new})
    values = UnitValues(study.own_values(), study.head)
    units, values = without_(body, wider, values, dead)
    assert_equal(output(body, values.own, values.head, x), wanted)
    assert {g: units.width(g) - first.width(g) for g in first.growing} == {
        group: 0 if group == first.growing[-1] else 2 for group in first.growing
    }
    # The earlier widths are still there, bit for bit.
    earlier = body.plain({}, 0, body.new_head(2))
    assert_identical([*earlier.parameters()][:-2], [*before.parameters()][:-2])
    # The control: units that are of use are missed.
    if len(first.growing) > 1:
        with torch.no_grad():
            for slot in body.shared.values():
                if slot.block == "new":
                    slot.tensor.zero_()
        assert largest_difference(output(body, values.own, values.head, x), wanted) > 1e-6


# -- splitting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", BODIES, ids=lambda case: case.name)
def test_splitting_every_unit_that_has_drifted_gives_earlier_tasks_back_what_they_had(
    case: Case,
) -> None:
    body = scattered(Body(Featured(case.model()), ExampleCall(case.inputs()), None))
    x, first = case.inputs(5), Units(body)
    own = {n: s.tensor.clone() for n, s in body.slots.items() if not s.shared}
    before = {n: s.tensor.clone() for n, s in body.shared.items()}
    head = body.new_head(2)
    wanted = body.plain(own, 0, head)(*x)
    parents = sorted({Unit(group, first.width(group) - 1) for group in first.growing})
    twins = {Unit(unit.home, first.width(unit.home)): unit for unit in parents}
    with torch.no_grad():
        for part in first.given(before):
            rows = part.rows(first.marks({*parents}))
            body.slots[part.slot].tensor.add_(rows * torch.rand(part.shape))
    drifted = body.plain(own, 0, head)(*x)
    assert torch.equal(drifted, wanted) == (not parents)
    values = {n: s.tensor.clone() for n, s in body.slots.items()}
    growth = {unit.home: 1 for unit in parents}
    units, mine = regrow_(body, growth, first, values, head, lambda unit: twins.get(unit, unit))
    split_(body, units, first, before, twins)
    # Bit for bit, as a task's network is the one that it was.
    assert torch.equal(body.plain(own, 0, head)(*x), wanted)
    # The duplicates have what the units had come to.
    for part in units.given(before):
        assert torch.equal(body.slots[part.slot].tensor, before[part.slot])
    if parents:
        norms = units.norms({name: slot.tensor for name, slot in body.shared.items()})
        assert all(norms[units.order.index(twin)] > 0 for twin in twins)
    assert mine.head.in_features == len(units.features)


def test_a_task_goes_on_with_the_duplicates_where_only_its_head_reads_them() -> None:
    """Units of the last layer: what the task has come to stays what it is."""
    body = scattered(Body(net().double(), ExampleCall((images(0, 2).double(),)), "auto"))
    x, first = (images(3).double(),), Units(body)
    before = {n: s.tensor.clone() for n, s in body.shared.items()}
    hidden = first.growing[-1]
    with torch.no_grad():
        body.slots["hidden:0.weight"].tensor[[1, 4]] += 0.3
    head = body.new_head(2)
    wanted = output(body, {}, head, x)
    twins = {Unit(hidden, 8): Unit(hidden, 1), Unit(hidden, 9): Unit(hidden, 4)}
    values = {n: s.tensor.clone() for n, s in body.slots.items()}
    units, mine = regrow_(
        body, {hidden: 2}, first, values, head, lambda unit: twins.get(unit, unit)
    )
    split_(body, units, first, before, twins)
    parents = units.on_features(units.marks({*twins.values()}))
    with torch.no_grad():
        mine.head.weight.masked_fill_(parents, 0.0)
    assert_equal(output(body, mine.own, mine.head, x), wanted)


def drifted_net(expanded: bool) -> tuple[Body, Units, Units, dict[str, Tensor], dict[str, Tensor]]:
    """A network that a task has changed everywhere, after it has gained units or not.

    With its units before and after that, its shared tensors before, and all of them after.
    """
    body = scattered(Body(net().double(), ExampleCall((images(0, 2).double(),)), "auto"))
    first, before = Units(body), {n: s.tensor.clone() for n, s in body.shared.items()}
    if expanded:
        body.grow_units(dict.fromkeys(first.growing, 2))
        scattered(body, 1)
    with torch.no_grad():
        for slot in body.shared.values():
            slot.tensor.add_(0.3 * torch.rand_like(slot.tensor))
    values = {n: s.tensor.clone() for n, s in body.slots.items()}
    return body, first, Units(body), before, values


@pytest.mark.parametrize("expanded", [False, True])
def test_a_task_whose_units_are_all_split_goes_on_as_it_was(expanded: bool) -> None:
    """Duplicates and new units read duplicates, each in place of what it was made of."""
    body, first, units, before, values = drifted_net(expanded)
    x, head = (images(3).double(),), body.new_head(2)
    wanted = output(body, {}, head, x)
    twins = {
        Unit(group, units.width(group) + n): Unit(group, n)
        for group in first.growing
        for n in range(first.width(group))
    }
    growth = {group: first.width(group) for group in first.growing}
    wide, mine = regrow_(body, growth, units, values, head, lambda unit: twins.get(unit, unit))
    split_(body, wide, first, before, twins)
    parents = wide.on_features(wide.marks({*twins.values()}))
    with torch.no_grad():
        mine.head.weight.masked_fill_(parents, 0.0)
    assert_equal(output(body, mine.own, mine.head, x), wanted)


def test_units_of_earlier_tasks_go_on_reading_what_was_split_not_its_duplicate() -> None:
    body, first, units, before, values = drifted_net(expanded=False)
    x, head = (images(3).double(),), body.new_head(2)
    stem, _ = first.growing
    twins = {Unit(stem, 6 + n): Unit(stem, n) for n in range(6)}
    body.slots["stem:0.weight"].tensor.data = before["stem:0.weight"].clone()
    body.slots["inner:0.weight"].tensor.data = before["inner:0.weight"].clone()
    wanted = output(body, {}, head, x)  # with the stem's old weights, and the others' new ones
    body.set_values(values)
    wide, mine = regrow_(body, {stem: 6}, units, values, head, lambda unit: twins.get(unit, unit))
    split_(body, wide, first, before, twins)
    assert_equal(output(body, mine.own, mine.head, x), wanted)


def test_units_that_cannot_be_duplicated_are_held() -> None:
    case = next(case for case in CASES if case.name == "partly fixed")
    made: Any = DEN(
        Featured(case.model()),
        case.inputs(),
        head=None,
        drift=1e-4,
        pull=0.0,
        units=2,
        training=FAST,
    )
    for index in range(2):
        x = torch.randn(24, *case.shape[1:], dtype=torch.float64)
        made.learn(Task(f"{index}", 2, (x, (x.flatten(1)[:, index] > 0).long())))
    assert sum(made.records[1].details["held"].values()) > 0
    assert made.records[1].details["drift"] <= 1e-4


# -- what is of use ----


def test_a_units_group_is_its_weights_or_the_scales_of_the_norms_that_it_goes_through() -> None:
    """Against groups that are put together by hand."""
    body = scattered(Body(net().double(), ExampleCall((images(0, 2).double(),)), "auto"))
    units = Units(body)
    values = {n: s.tensor.clone() for n, s in body.slots.items() if s.trains and "bias" not in n}
    before = {name: value.clone() for name, value in values.items()}
    scales = ["norm:0.weight", "norm2:0.weight"]
    groups = {
        "stem": torch.stack([before[name] for name in scales], 1),
        "hidden": before["hidden:0.weight"],
    }
    threshold = float(torch.cat([rows.norm(dim=1) for rows in groups.values()]).median())
    dead = shrink_(units, values, units.marks({*units.order}), threshold)
    for rows in groups.values():
        rows.mul_((1 - threshold / rows.norm(dim=1, keepdim=True)).clamp(min=0))
    assert_equal(torch.stack([values[name] for name in scales], 1), groups["stem"])
    assert_equal(values["hidden:0.weight"], groups["hidden"])
    for name in ("stem:0.weight", "inner:0.weight"):
        assert torch.equal(values[name], before[name])
    gone = sum(int((rows == 0).all(1).sum()) for rows in groups.values())
    assert 0 < gone < 14
    assert len(units.chosen(dead) - {CONSTANT}) == gone


def test_the_size_of_weights_in_front_of_a_norm_has_no_effect_and_its_scales_have() -> None:
    """Why the scales are the group: in training, batch norms undo the size of weights."""
    body = scattered(Body(net().double(), ExampleCall((images(0, 2).double(),)), "auto"))
    units, x = Units(body), images(4).double()
    assert {unit.home for unit in units.chosen(units.scaled)} == {units.growing[0]}
    body.model.train()
    body.model.drop.p = 0.0
    for slot in body.slots.values():
        if slot.name.startswith("norm") and slot.name.endswith(("weight", "bias")):
            slot.tensor.detach().abs_()
    wanted = body.model(x)
    for name, effect in (("stem:0.weight", 0.0), ("norm:0.weight", 0.1), ("hidden:0.weight", 0.1)):
        with torch.no_grad():
            body.slots[name].tensor.mul_(2.0)
            apart = float((body.model(x) - wanted).abs().max())
            body.slots[name].tensor.div_(2.0)
        assert apart < 1e-4 if not effect else apart > effect


def test_new_units_begin_small_but_not_nothing_and_everything_new_is_drawn() -> None:
    body = Body(net().double(), ExampleCall((images(0, 2).double(),)), "auto")
    first, trial, plain = Units(body), body.copied(), body.copied()
    plain.grow_units(dict.fromkeys(first.growing, 3))
    trial.grow_units(dict.fromkeys(first.growing, 3), Drawn())
    wider, added = Units(trial), {*trial.shared} - {*body.shared}
    fresh = wider.marks(wider.since(first))
    head = widened_head(body.new_head(2), first, wider, lambda unit: unit)
    assert any(not plain.slots[name].tensor.any() for name in added)
    assert not head.weight[:, 8:].any()
    old = head.weight.detach().clone()
    draw_head_(trial, head, wider.on_features(fresh))
    assert all((trial.slots[name].tensor != 0).all() for name in added)
    assert (head.weight[:, 8:] != 0).all()
    assert torch.equal(head.weight[:, :8], old[:, :8])
    values = {n: s.tensor.clone() for n, s in trial.slots.items() if s.trains and "bias" not in n}
    sizes = wider.sizes(values)
    lower_(wider, values, fresh, 0.1)
    assert torch.allclose(wider.sizes(values)[fresh], (0.05 * sizes[fresh]).clamp(min=0.1))
    assert torch.equal(wider.sizes(values)[~fresh], sizes[~fresh])
    lower_(wider, values, fresh, math.inf)
    assert torch.allclose(wider.sizes(values)[fresh], (0.05 * sizes[fresh]).clamp(min=0.1))


def test_the_stronger_the_group_lasso_the_fewer_units_stay_in_front_of_norms_too() -> None:
    added = dict.fromkeys((0.01, 0.1, 1.0), 0)
    for strength in added:
        for seed in range(3):
            made = den(threshold=1.0, group_lasso=strength, units=6, drift=math.inf, seed=seed)
            for index in range(2):
                made.learn(task(index))
            added[strength] += made.records[1].details["added"]["stem"]
    assert added[0.01] == 3 * 6
    assert 0 < added[0.1] < 3 * 6
    assert added[1.0] == 0


# -- proximal steps -------------------------------------------------------------------------------


def test_the_proximal_steps_are_the_nearest_points() -> None:
    """Against values by hand, and against minimisation for the group lasso."""
    weight = torch.tensor([0.5, -0.2, 0.05, -2.0])
    soften_(weight, 0.1)
    assert torch.allclose(weight, torch.tensor([0.4, -0.1, 0.0, -1.9]))
    assert weight[2] == 0
    weight, origin = {"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}
    pull_(weight, origin, 0.5)
    assert weight["w"].item() == 2.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("radius", [0.0, 1e-6, 1e-3, 1.0])
def test_holding_never_leaves_a_unit_beyond_by_rounding(dtype: torch.dtype, radius: float) -> None:
    body = scattered(Body(net().to(dtype), ExampleCall((images(0, 2).to(dtype),)), "auto"))
    units = Units(body)
    before = {name: 100 * slot.tensor for name, slot in body.shared.items()}
    weights = {name: value + torch.randn_like(value) for name, value in before.items()}
    masks = {name: torch.rand(value.shape) < 0.7 for name, value in before.items()}
    pull_back_(units, weights, before, masks, radius)
    seen = {name: torch.where(masks[name], w, before[name]) for name, w in weights.items()}
    apart = {name: seen[name].double() - before[name].double() for name in seen}
    assert float(units.norms(apart).max()) <= radius
    assert radius < 1e-3 or float(units.norms(apart).max()) > 0.9 * radius


# -- as a whole -----------------------------------------------------------------------------------


def taught(made: Any, case: Case, index: int) -> Tensor:
    (x,) = case.inputs(index)
    x = x.repeat(6, *[1] * (x.dim() - 1))
    x = x + 0.1 * torch.randn_like(x) if x.is_floating_point() else x
    made.learn(
        Task(f"{index}", 2, (x, torch.arange(len(x)) % 2), None, (x, torch.arange(len(x)) % 2))
    )
    return x


@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_any_architecture_learns_tasks_and_remembers_them(case: Case) -> None:
    made: Any = DEN(
        Featured(case.model()),
        case.inputs(),
        head=None,
        training=Training(epochs=1, batch_size=8, lr=0.02, clip=1.0),
        threshold=1.0,
        units=2,
        drift=0.0,
        group_lasso=0.0,
    )
    given: list[Tensor] = []
    found: list[Tensor] = []
    for index in range(3):
        given.append(taught(made, case, index))
        found.append(made.predict(given[-1], task=f"{index}"))
        made._networks.clear()
        for number, (x, wanted) in enumerate(zip(given, found, strict=True)):
            assert torch.equal(made.predict(x, task=f"{number}"), wanted)
        assert made.records[-1].details.get("drift", 0.0) == 0.0
    assert made.report().expansion > 1


def test_what_is_judged_is_what_the_tasks_network_gives() -> None:
    made = den()
    for index in range(3):
        one = task(index)
        record = made.learn(Task(one.name, 2, one.train, None, one.test))
        assert record.accuracy == made.evaluate(one.test, task=one.name)


@pytest.mark.parametrize("sigma", [0.02, math.inf])
def test_a_learner_that_was_saved_goes_on_with_the_same_bits(tmp_path: Path, sigma: float) -> None:
    made, other = den(drift=sigma), den(drift=sigma)
    for index in range(2):
        made.learn(task(index))
    made.save(tmp_path / "den")
    other.load(tmp_path / "den")
    for each in (made, other):
        each.learn(task(2))
    for name, value in outputs(made).items():
        assert torch.equal(outputs(other)[name], value)
    assert [r.details for r in made.records] == [r.details for r in other.records]
    assert ("split" in made.records[2].details) == (sigma < 1)


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize("stage", ["select", "retrain", "expand", "settle"])
def test_a_learner_that_was_killed_goes_on_where_it_was(tmp_path: Path, stage: str) -> None:
    whole = den(drift=0.02)
    for index in range(2):
        whole.learn(task(index))
    trained: list[str] = []

    def kill(event: Any) -> None:
        if isinstance(event, EpochDone) and event.task == "task 1":
            trained.append(event.stage)
            if event.stage == stage and event.epoch == 2:
                raise KilledError

    options = {"drift": 0.02, "directory": tmp_path, "save_every": 0.0}
    made = den(callbacks=[kill], **options)
    made.learn(task(0))
    with pytest.raises(KilledError):
        made.learn(task(1))
    assert made.tasks == ("task 0",)
    again: list[str] = []
    other = den(
        callbacks=[lambda e: again.append(e.stage) if isinstance(e, EpochDone) else None],
        **options,
    )
    assert other.resume()
    other.learn(task(1))
    for name, value in outputs(whole).items():
        assert torch.equal(outputs(other)[name], value)
    finished = [each for each in dict.fromkeys(trained) if each != stage]
    assert not {*again} & {*finished}


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 1.5},
        {"threshold": {"a": -1.0}},
        {"drift": -0.1},
        {"drift": math.nan},
        {"units": -1},
        {"units": 2.5},
        {"largest": 0.9},
        {"l1": -1.0},
        {"group_lasso": math.inf},
        {"pull": -1.0},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        den(**wrong)
