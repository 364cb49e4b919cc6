"""The plan: printed, as rows, as data, drawn."""

from __future__ import annotations

import json

import pytest
import torch
from cases import CASES
from grown_policies import convolutional, policy
from torch import nn

import splitgrow
from splitgrow import Budget, ComputeShares, Cycles, Every, Factor, Plateau
from splitgrow.grower import Schedule
from splitgrow.grower.planned_growth import shortened


def test_the_printed_plan_has_the_moments_the_widths_and_the_sizes() -> None:
    assert str(policy(convolutional(), when=Every(100)).plan()).splitlines() == [
        "3 growths to 2 times the widths",
        "  growth  moment           parameters  macs a sample  macs spent by then",
        "  start   before training       3,090        23.56 k                   0",
        "  1       step 100              4,854        34.49 k             35.34 M",
        "  2       step 200              7,580        53.13 k             87.08 M",
        "  3       step 300             11,744        78.61 k             166.8 M",
        "",
        "  layer  start   1   2   3",
        "  0          8  10  13  16",
        "  3         12  15  19  24",
        "  6         10  13  16  20",
        "  8          4   .   .   .",
        "left alone: 8 (an output of the model, which grows if it is named)",
    ]


RULES = [Every(1000), ComputeShares([0.1, 0.2, 0.3], macs=1e9), Plateau("a_long_name_" * 5)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_printed_plan_fits_a_hundred_columns(rule) -> None:
    layers = [nn.Linear(4, 1000), *(nn.Linear(1000, 1000) for _ in range(12)), nn.Linear(1000, 3)]
    net = nn.Sequential()
    for index, layer in enumerate(layers):
        net.add_module(f"a_very_long_name_of_a_layer_{chr(97 + index)}" * 3, layer)
    with torch.device("meta"):
        model = splitgrow.growable(net.to("meta"), torch.ones(2, 4, device="meta"))
    lines = str(policy(model, when=rule).plan()).splitlines()
    assert max(map(len, lines)) <= 100


def test_rows_have_each_layer_of_each_growth() -> None:
    plan = policy(convolutional(), when=Every(100)).plan()
    rows = plan.to_rows()
    assert len(rows) == 3 * 4
    assert rows[0] == {
        "growth": 1,
        "moment": "step 100",
        "step": 100,
        "layer": "0",
        "before": 8,
        "after": 10,
        "parameters": plan.growths[0].parameters,
        "macs": plan.growths[0].macs,
        "macs_spent": 3 * 5 * 100 * plan.start.macs,
    }
    assert [row["after"] for row in rows if row["layer"] == "8"] == [4, 4, 4]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_plan_is_the_same_from_its_data(rule) -> None:
    plan = policy(convolutional(), when=rule).plan()
    assert Schedule.from_data(json.loads(json.dumps(plan.to_data()))) == plan


def test_the_printed_plan_of_cycles_has_growths_and_shrinks() -> None:
    plan = policy(convolutional(), when=Every(100), to=Cycles(Budget(macs=30_000), times=1)).plan()
    assert str(plan).splitlines()[:5] == [
        "1 growth and 1 shrink to 1.182 times the widths; units move between layers, and widths "
        "with them",
        "  change  moment           parameters  macs a sample  macs spent by then",
        "  start   before training       3,090        23.56 k                   0",
        "  1       step 100              9,229        62.06 k             35.34 M",
        "  2       step 200              4,170        29.63 k             128.4 M",
    ]
    assert Schedule.from_data(json.loads(json.dumps(plan.to_data()))) == plan


def test_the_arithmetic_at_a_moment_that_only_metrics_know_is_not_told() -> None:
    plan = policy(convolutional(), when=Plateau("loss")).plan()
    assert [growth.macs_spent for growth in plan.growths] == [None] * 3
    assert [growth.step for growth in plan.growths] == [None] * 3


@pytest.mark.parametrize(
    ("rule", "to"),
    [(Every(10), None), (Plateau("loss"), Factor(0.5)), (Every(5), Cycles(Budget(macs=30_000)))],
    ids=["steps", "metrics", "cycles"],
)
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_plan_is_drawn(rule, to, suffix, tmp_path) -> None:
    path = policy(convolutional(), when=rule, to=to).plan().draw(tmp_path / f"plan{suffix}")
    assert path.stat().st_size > 3000


def test_large_numbers_are_short() -> None:
    assert [shortened(n) for n in (0, 1500, 2_345_678, 1e21)] == ["0", "1.5 k", "2.346 M", "1000 E"]


def test_layers_that_differ_in_numbers_only_are_one_row() -> None:
    case = next(case for case in CASES if case.name == "dense")
    plan = str(policy(splitgrow.growable(case.model(), case.inputs())).plan())
    assert "*" in plan
    assert len(plan.splitlines()) < 30
