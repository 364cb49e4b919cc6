"""Models that fit a budget: smaller than the model, and round it in cycles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grown_policies import convolutional, multiply_adds_of, parameters_of, policy, sgd, train_step
from grown_policies import widths as widths_by_name
from torch import nn

import splitgrow
from splitgrow import Budget, ComputeShares, Cycles, Every, Factor, Score

FACTORS = [n / 1000 for n in range(20, 1000)]


def by_factor(factor: float) -> tuple[int, int, int]:
    """The widths nearest to a factor, by hand: of two the larger, and one unit stays."""
    return tuple(max(1, int(factor * width + 0.5)) for width in (8, 12, 10))


def hidden(found: dict[str, int]) -> tuple[int, int, int]:
    return found["0"], found["3"], found["6"]


@pytest.mark.parametrize("budget", [900, 2_400])
def test_a_smaller_budget_of_parameters_is_filled_by_the_largest_factor_that_fits(budget) -> None:
    fitting = (by_factor(f) for f in FACTORS if parameters_of(*by_factor(f)) <= budget)
    plan = policy(convolutional(), to=Budget(params=budget), steps=1).plan()
    assert hidden(plan.growths[-1].widths) == max(fitting, key=sum)
    assert parameters_of(*by_factor(plan.factor + 0.1)) > budget  # a larger one exceeds it


@pytest.mark.parametrize("budget", [3_000, 20_000])
def test_a_smaller_budget_of_multiply_adds_is_filled_by_the_largest_factor_that_fits(
    budget,
) -> None:
    fitting = (by_factor(f) for f in FACTORS if multiply_adds_of(*by_factor(f)) <= budget)
    plan = policy(convolutional(), to=Budget(macs=budget, params=1e9), steps=1).plan()
    assert hidden(plan.growths[-1].widths) == max(fitting, key=sum)


def test_a_budget_that_no_widths_fit_is_refused_with_the_smallest_size() -> None:
    least = parameters_of(1, 1, 1)
    with pytest.raises(ValueError, match=f"has 3,090 parameters, .* widths {least} parameters"):
        policy(convolutional(), to=Budget(params=least - 1))
    plan = policy(convolutional(), to=Budget(params=least), steps=1).plan()
    assert hidden(plan.growths[0].widths) == (1, 1, 1)


# -- cycles ----------------------------------------------------------------------------------------


def unequal(seed: int = 0) -> Any:
    """A model in which most units of its hidden layer do nothing, and all of others much."""
    model = convolutional(seed)
    with torch.no_grad():
        model[6].weight[2:] *= 1e-3
        model[8].weight[:, 2:] *= 1e-3
    return model


def run(model: Any, to: Cycles, **changes: Any) -> tuple[list[Any], Any]:
    """Trains for all changes, one a step; the widths and multiply-adds after each."""
    optimizer = sgd(model)
    grower = policy(model, optimizer, to=to, when=Every(1), absorb=True, **changes)
    found = []
    for step in range(1, to.growths + 2):
        train_step(model, optimizer, step)
        edit = grower.step()
        found.append((edit, hidden(widths_by_name(model)), grower.macs))
    assert grower.done
    return found, grower


def test_each_cycle_grows_beyond_the_budget_and_ends_within_it() -> None:
    budget = 30_000
    found, grower = run(convolutional(), Cycles(Budget(macs=budget), grow=1.5, times=3))
    for number, (edit, now, macs) in enumerate(found[:6]):
        assert macs == multiply_adds_of(*now)
        grows = number % 2 == 0
        assert all((units > 0) == grows for units in edit.request.values())
        assert (macs > budget) == grows
        if not grows:  # the next unit of the weakest would have been one too few
            assert macs > 0.8 * budget
    assert found[6][0] is None
    spent = [multiply_adds_of(8, 12, 10), *(macs for _, _, macs in found[:6])]
    assert grower.macs_spent == 3 * 5 * sum(spent)


def test_growth_takes_layers_to_a_multiple_of_the_widths_that_the_criterion_left() -> None:
    found, _ = run(unequal(), Cycles(Budget(macs=22_000), grow=2.0, times=2))
    pruned, grown = found[1][1], found[2][1]
    assert grown == tuple(2 * width for width in pruned)
    assert pruned != by_factor(pruned[0] / 8)


def test_units_go_where_they_do_little_and_come_where_they_are_needed() -> None:
    budget = Budget(macs=multiply_adds_of(8, 12, 10))
    moved, _ = run(unequal(), Cycles(budget, grow=1.5, times=2), init="net2net")
    _, second, third = moved[-1][1]
    assert third < 10
    assert second > 12


def test_control_without_a_criterion_s_comparison_every_layer_keeps_its_share() -> None:
    """The plan itself is of equal factors: only the criterion moves units."""
    budget = Budget(macs=multiply_adds_of(8, 12, 10))
    grower = policy(unequal(), to=Cycles(budget, grow=1.5, times=2))
    assert [hidden(stage.widths) for stage in grower.plan().stages] == [
        *((8, 12, 10), (12, 19, 15)),
        *((8, 12, 10), (12, 19, 15), (8, 12, 10)),
    ]
    assert "units move between layers" in str(grower.plan())
    assert str(grower.plan()).startswith("2 growths and 2 shrinks")


def test_a_model_beyond_the_budget_is_pruned_at_once() -> None:
    to = Cycles(Budget(macs=5_000), grow=1.25, times=1)
    model = convolutional()
    grower = policy(model, to=to, when=Every(1))
    assert grower.step() is None
    assert grower.step() is not None
    assert grower.macs <= 5_000
    assert grower.done


@pytest.mark.parametrize("times", [1, 3])
def test_cycles_set_the_number_of_growths_and_shrinks(times) -> None:
    to = Cycles(Budget(macs=30_000), times=times)
    assert len(policy(convolutional(), to=to).plan().growths) == 2 * times
    assert len(policy(convolutional(), to=to, steps=2 * times).plan().growths) == 2 * times
    with pytest.raises(ValueError, match=rf"steps \(=5\) contradicts .* has {2 * times}"):
        policy(convolutional(), to=to, steps=5)
    when = ComputeShares([0.1, 0.2, 0.3, 0.4], macs=1e9)
    with pytest.raises(ValueError, match=r"ComputeShares.* has 4, Cycles"):
        policy(convolutional(), to=to, when=when)


def test_a_score_chooses_where_cycles_grow_and_all_layers_may_shrink() -> None:
    where = Score(lambda model: {"0": 2.0, "3": 1.0, "6": 0.0}, share=0.3)
    found, _ = run(unequal(), Cycles(Budget(macs=25_000), grow=2.0, times=1), where=where)
    assert {*found[0][0].request} == {"0"}
    assert "6" in found[1][0].request


def test_widths_are_multiples_of_round_to_where_units_go() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 2))
    model = splitgrow.growable(net.double(), torch.randn(3, 6, dtype=torch.float64))
    grower = policy(
        model, to=Cycles(Budget(params=700), times=2), when=Every(1), round_to=4, absorb=True
    )
    for _ in range(4):
        grower.step()
        assert all(layer.width % 4 == 0 for layer in model.layers[:2])
    assert sum(parameter.numel() for parameter in model.parameters()) <= 700


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Cycles(Factor(2.0)), TypeError),
        (lambda: Cycles(1e6), TypeError),
        (lambda: Cycles(Budget(macs=1), grow=0.9), ValueError),
        (lambda: Cycles(Budget(macs=1), grow=1), ValueError),
        (lambda: Cycles(Budget(macs=1), times=0), ValueError),
        (lambda: Cycles(Budget(macs=1), times=1.5), TypeError),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, error) -> None:
    with pytest.raises(error):
        make()


def test_closed_generations_are_not_pruned() -> None:
    with pytest.raises(ValueError, match="freeze=False"):
        policy(convolutional(), to=Cycles(Budget(macs=30_000)), freeze=True)
