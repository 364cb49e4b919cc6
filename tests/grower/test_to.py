"""How much a model grows: factors, widths, budgets."""

from __future__ import annotations

import pytest
import torch
from grown_policies import convolutional, multiply_adds_of, parameters_of, policy, widths
from torch import nn

import splitgrow
from splitgrow import All, Budget, Factor, SplitGrowWarning, ToWidths
from splitgrow.grower import To


def last(to: To, **changes: object) -> tuple[int, int, int]:
    model = convolutional()
    found = policy(model, to=to, steps=1, **changes).plan().growths[-1].widths
    assert found["8"] == 4
    return found["0"], found["3"], found["6"]


@pytest.mark.parametrize("factor", [1.25, 1.5, 2.0, 3.3])
def test_a_factor_takes_each_layer_to_the_nearest_width(factor) -> None:
    assert last(Factor(factor)) == tuple(int(factor * width + 0.5) for width in (8, 12, 10))


def test_widths_are_multiples_of_round_to_where_they_grow() -> None:
    assert last(Factor(1.5), round_to=8) == (16, 16, 16)  # 12, 18 and 15, each to the nearest
    with pytest.warns(SplitGrowWarning, match="nothing will grow"):
        assert last(Factor(1.1), round_to=8) == (8, 12, 10)  # it is nearer to stay


def test_widths_are_met_exactly_or_refused_with_those_that_fit() -> None:
    assert last(ToWidths({"0": 11, 2: 13})) == (11, 12, 13)
    assert last(ToWidths(lambda layer: 20 if layer.kind == "Conv2d" else None)) == (20, 20, 10)
    assert last(ToWidths({"6": lambda layer: 3 * layer.width})) == (8, 12, 30)
    groups = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1, groups=2), nn.Conv2d(4, 2, 1))
    model = splitgrow.growable(groups, torch.randn(2, 3, 4, 4))
    assert ToWidths({"0": 8}).request(model) == {"0": 2}
    with pytest.raises(ValueError, match="nearest widths are"):
        ToWidths({"0": 7}).request(model)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"conv": 10}, "no layer 'conv'"),
        ({9: 10}, "no layer 9"),
        ({"0": 7}, "smaller than the model"),
        ({"0": 10, 0: 11}, "two widths"),
    ],
)
def test_widths_that_cannot_be_are_refused(given, message) -> None:
    with pytest.raises(ValueError, match=message):
        ToWidths(given).request(convolutional())


def test_a_width_and_a_place_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="to keep its width"):
        ToWidths({"0": 10}).request(convolutional(), where=All(except_="0"))
    with pytest.raises(ValueError, match="may not grow"):
        ToWidths({"0": 10}).request(convolutional(), where=All(only="3"))


def by_factor(factor: float) -> tuple[int, int, int]:
    """The widths nearest to the factor, by hand."""
    return tuple(int(factor * width + 0.5) for width in (8, 12, 10))


FACTORS = [1 + n / 1000 for n in range(4000)]


@pytest.mark.parametrize("budget", [6_000, 9_100, 25_000])
def test_a_budget_of_parameters_is_filled_by_the_largest_factor_that_fits(budget) -> None:
    best = max((by_factor(f) for f in FACTORS if parameters_of(*by_factor(f)) <= budget), key=sum)
    assert last(Budget(params=budget)) == best
    assert parameters_of(*best) <= budget


@pytest.mark.parametrize("budget", [50_000, 123_456])
def test_a_budget_of_multiply_adds_is_filled_by_the_largest_factor_that_fits(budget) -> None:
    fitting = (by_factor(f) for f in FACTORS if multiply_adds_of(*by_factor(f)) <= budget)
    best = max(fitting, key=sum)
    assert last(Budget(macs=budget)) == best
    assert last(Budget(macs=budget, params=1e9)) == best


def test_control_a_slightly_larger_factor_exceeds_the_budget() -> None:
    plan = policy(convolutional(), to=Budget(params=9_100), steps=1).plan()
    assert plan.growths[-1].parameters <= 9_100
    assert parameters_of(*by_factor(plan.factor + 0.1)) > 9_100


def test_of_two_limits_of_a_budget_both_hold() -> None:
    plan = policy(convolutional(), to=Budget(params=9_100, macs=60_000)).plan()
    alone = policy(convolutional(), to=Budget(params=9_100)).plan()
    assert plan.growths[-1].macs <= 60_000 < alone.growths[-1].macs


def test_a_budget_that_is_too_small_or_has_no_end_is_refused() -> None:
    with pytest.raises(ValueError, match="larger than Budget"):
        policy(convolutional(), to=Budget(params=10))
    with pytest.raises(ValueError, match="more than"):
        policy(convolutional(), to=Budget(params=1e30))


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Factor(1.0), ValueError),
        (lambda: Factor(float("nan")), ValueError),
        (lambda: Factor("2"), TypeError),
        (lambda: ToWidths({}), ValueError),
        (lambda: ToWidths(3), TypeError),
        (Budget, ValueError),
        (lambda: Budget(macs=-1), ValueError),
        (lambda: Budget(params="many"), TypeError),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, error) -> None:
    with pytest.raises(error):
        make()


class Square(To):
    """A rule of one's own: the first layer grows most."""

    def goals(self, scope):
        return {layer.name: layer.width * (3 if layer.index == 0 else 2) for layer in scope.layers}


def test_a_rule_of_ones_own_says_how_much() -> None:
    assert last(Square()) == (24, 24, 20)

    class Narrower(To):
        def goals(self, scope):
            return {"0": 3}

    class Nothing(To):
        def goals(self, scope):
            return {"0": 0}

    assert last(Narrower()) == (3, 12, 10)
    with pytest.raises(ValueError, match="has 8 units, and the goal 0"):
        last(Nothing())


def test_a_growth_in_duplicates_goes_by_whole_multiples() -> None:
    model = splitgrow.growable(
        nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)).double(),
        torch.randn(2, 3, dtype=torch.float64),
    )
    plan = policy(model, to=Factor(4.0), steps=4, init="duplicate").plan()
    assert [growth.widths["0"] for growth in plan.growths] == [4, 8, 8, 16]
    assert widths(model)["0"] == 4


@pytest.mark.parametrize(("layer", "width", "fits"), [("8", 7, True), ("0", 11, False)])
def test_units_that_belong_together_are_asked_for_where_growth_asks_for_them(
    layer: str, width: int, fits: bool
) -> None:
    """Pairs are hidden units: outputs of the model may be any number."""
    model = convolutional()
    options = {"to": ToWidths({layer: width}), "steps": 1, "init": "pair"}
    if fits:
        assert policy(model, **options).plan().growths[-1].widths[layer] == width
        model.expand_layer(layer, 3, initializer="pair", freeze=False)
        return
    with pytest.raises(ValueError, match="adds units by multiples of 2, and '0' would") as one:
        policy(model, **options)
    with pytest.raises(ValueError, match="adds units by multiples of 2") as other:
        model.expand_layer(layer, 3, initializer="pair", freeze=False)
    assert str(one.value) == str(other.value)
