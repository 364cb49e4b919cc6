"""Where a model grows: names, patterns, predicates, scores."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from grown_policies import convolutional, policy, widths
from torch import nn

import splitgrow
from splitgrow import All, Every, Factor, Score
from splitgrow.grower import Where


def grown(where: Where) -> list[str]:
    return [*Factor(2.0).request(convolutional(), where=where)]


def test_layers_are_chosen_by_name_index_pattern_and_predicate() -> None:
    assert grown(All()) == ["0", "3", "6"]
    assert grown(All(only="0")) == ["0"]
    assert grown(All(only=[1, "6"])) == ["3", "6"]
    assert grown(All(only="[03]")) == ["0", "3"]
    assert grown(All(only=lambda layer: layer.kind == "Linear")) == ["6"]  # not the output
    assert grown(All(except_=["3"])) == ["0", "6"]
    assert grown(All(only="*", except_=lambda layer: layer.width > 9)) == ["0"]
    assert grown(All(only=["8"])) == ["8"]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (All(only="conv1"), "no layer 'conv1'"),
        (All(only=[7]), "no layer 7"),
        (All(only="body.*"), "no layer fits 'body"),
        (All(except_="body.*"), "no layer fits 'body"),
        (All(only=lambda layer: False), "no layer fits the predicate"),
    ],
)
def test_a_name_or_pattern_that_fits_no_layer_is_refused(where, message) -> None:
    with pytest.raises(ValueError, match=message):
        policy(convolutional(), where=where)


def test_a_misspelt_name_is_refused_with_the_closest() -> None:
    net = nn.Sequential()
    net.add_module("stem", nn.Linear(2, 3))
    net.add_module("head", nn.Linear(3, 1))
    model = splitgrow.growable(net, torch.ones(1, 2))
    with pytest.raises(ValueError, match="did you mean 'stem'"):
        Factor(2.0).request(model, where=All(only="stm"))


def test_choices_of_another_type_are_refused() -> None:
    for given in (3.5, [None], [True]):
        with pytest.raises(TypeError, match="only"):
            All(only=given)


def test_a_score_grows_its_share_of_the_layers_and_the_plan_bounds_it() -> None:
    model, asked = convolutional(), []

    def score(net: nn.Module) -> dict[str, float]:
        asked.append(net)
        return [{"0": 3, "3": 2, "6": 1}, {"0": 1, "3": 2, "6": 3}, {"3": 9}][len(asked) - 1]

    grower = policy(model, when=Every(1), where=Score(score, share=1 / 3))
    seen = []
    for growth in grower.plan().growths:
        edit = grower.step()
        seen.append([*edit.request])
        now = widths(model)
        assert {n: now[n] for n in edit.request} == {n: growth.widths[n] for n in edit.request}
        assert all(now[name] <= growth.widths[name] for name in now)
    assert seen == [["0"], ["6"], ["3"]]
    assert asked == [model] * 3
    assert "at most" in str(grower.plan()) or "upper bounds" in str(grower.plan())
    assert widths(model) == {"0": 10, "3": 24, "6": 16, "8": 4}


def test_equal_scores_keep_the_order_of_the_layers_and_at_least_one_grows() -> None:
    model = convolutional()
    where = Score(lambda net: dict.fromkeys(widths(net), 1.0), share=0.01)
    assert [*policy(model, when=Every(1), where=where).step().request] == ["0"]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"conv": 1.0}, "no layer"),
        ({"0": float("nan")}, "not a number"),
        ({"8": 1.0}, "no number for any"),
    ],
)
def test_a_score_that_cannot_decide_stops_the_growth_and_changes_nothing(scores, message) -> None:
    model = convolutional()
    grower = policy(model, when=Every(1), where=Score(lambda net: scores))
    before = grower.state_dict()
    with pytest.raises(ValueError, match=message):
        grower.step()
    assert grower.state_dict() == before
    assert widths(model)["0"] == 8


def test_a_named_score_asks_splitgrow_scores_and_goes_by_the_order_of_the_rows(monkeypatch) -> None:
    given = []

    def rank(model, loss, batches, *, score):
        given.append((model, loss, batches, score))
        return [SimpleNamespace(layer="6", score=0.1), SimpleNamespace(layer="0", score=0.9)]

    monkeypatch.setattr(splitgrow.scores, "rank", rank)
    model = convolutional()
    where = Score("dead", loss=len, batches=iter([1, 2]), share=0.3)
    assert [*policy(model, when=Every(1), where=where).step().request] == ["6"]
    assert given == [(model, len, (1, 2), "dead")]


def test_a_named_score_ranks_for_real() -> None:
    model = convolutional()
    batches = [torch.randn(8, 3, 6, 6, dtype=torch.float64)]
    where = Score("gradient", loss=lambda net, x: net(x).square().mean(), batches=batches)
    grower = policy(model, when=Every(1), where=where)
    assert len(grower.step().request) == 2  # half of three


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Score(lambda net: {}, share=0), ValueError),
        (lambda: Score(lambda net: {}, share="half"), TypeError),
        (lambda: Score("gain"), ValueError),
        (lambda: Score(3), TypeError),
    ],
)
def test_settings_that_mean_nothing_are_refused(make, error) -> None:
    with pytest.raises(error):
        make()
