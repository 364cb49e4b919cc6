"""A target is met with as few units gone as possible, or refused before anything changes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from cases import CASES
from helpers import randomise
from scoring import grown_at_once, made_growable
from snapshots import unchanged
from torch import Tensor, nn

import splitgrow
from splitgrow import Target
from splitgrow.growth.history_lookup import history_of
from splitgrow.pruning import target as target_module
from splitgrow.pruning.choosing import as_request, prunable_groups, weakest_units
from splitgrow.pruning.prune import make_prune_plan, prune_settings, prune_view
from splitgrow.pruning.target import Sizes
from splitgrow.utils.rollback import Undo

SIZED = (
    "residual",
    "u-net",
    "shuffled",
    "vision transformer",
    "tokens",
    "tagger",
    "squeeze and excite",
)
"""Models with all kinds of layers: depthwise and transposed ones, heads, tables, recurrent ones."""


class Tied(nn.Module):
    """A table and a head that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner = nn.Embedding(30, 12), nn.Linear(12, 12)
        self.head = nn.Linear(12, 30, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        return self.head(x + self.inner(x).relu())


def net() -> Any:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 2)]
    return splitgrow.growable(randomise(nn.Sequential(*layers)).double(), torch.ones(4, 6).double())


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: Any) -> int:
    return Sizes(model).macs // Sizes(model).samples


def one_unit_more(model: Any, twin: Any) -> Any:
    """The twin, pruned by one unit less than the model was: the strongest that went stays."""
    gone = -sum(splitgrow.handle(model).edits[-1].growth.values())
    history = history_of(twin)
    plan = make_prune_plan(Undo(), twin, history, settings(), None, Target(params=1.0), 1)
    candidates = plan.candidates(history.graph)
    view = prune_view(twin, history, plan)
    scores = plan.settings.criterion.scores(view)
    share = (gone - 0.5) / sum(candidates.first.values())
    found = weakest_units(candidates, scores, share, "global", comparable=False)
    assert sum(map(len, found.values())) == gone - 1
    twin.shrink(as_request(history.graph, found))
    return twin


def settings() -> Any:
    return prune_settings(
        criterion="group",
        scope="global",
        layers=None,
        ignore=(),
        keep=0.1,
        refit=None,
        loss=None,
        batches=(),
        round_to=1,
        give_up=False,
    )


TARGETS: dict[str, tuple[Target, Any, Any]] = {
    "half of the parameters": (Target(params=0.5), parameters, 0.5),
    "so many parameters": (Target(params=300), parameters, 300),
    "half of the multiply-adds": (Target(macs=0.5), macs, 0.5),
    "so many multiply-adds": (Target(macs=300), macs, 300),
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_met_and_with_one_unit_more_it_is_not(name: str) -> None:
    target, measure, most = TARGETS[name]
    model, twin = net(), net()
    most = most * measure(twin) if isinstance(most, float) else most
    edit = model.prune(target=target)
    assert measure(model) <= most < measure(one_unit_more(model, twin))
    assert edit.macs == (macs(net()), macs(model))
    with unchanged(model):
        assert model.prune(target=Target(params=parameters(model), macs=macs(model))) is None


def test_a_target_is_met_in_all_that_it_names() -> None:
    model = net()
    model.prune(target=Target(params=0.9, macs=0.3))
    assert parameters(model) < 0.9 * parameters(net())
    assert 0.25 * macs(net()) < macs(model) <= 0.3 * macs(net())


def test_steps_fall_in_equal_parts() -> None:
    model, seen = net(), []
    start = macs(model)
    model.prune(target=Target(macs=0.4), steps=3, recover=lambda edit: seen.append(macs(model)))
    for got, share in zip(seen, (0.8, 0.6, 0.4), strict=True):
        assert (share - 0.05) * start < got <= share * start


@pytest.mark.parametrize("steps", [1, 4])
def test_what_cannot_be_reached_is_refused_before_the_first_step(steps: int) -> None:
    for model in (net(), grown_at_once(CASES[2])):
        for target in (Target(params=1), Target(macs=0.001)):
            with unchanged(model), pytest.raises(ValueError, match="cannot get so small"):
                model.prune(target=target, steps=steps)
    with unchanged(model), pytest.raises(ValueError, match="lower `keep`"):
        model.prune(target=Target(params=0.5), keep=0.9)
    model = made_growable(next(case for case in CASES if case.name == "u-net"))
    with unchanged(model), pytest.raises(ValueError, match="no scores for the units of `bottom`"):
        model.prune(target=Target(params=0.1), criterion="scale", steps=steps)


@pytest.mark.parametrize("name", SIZED)
def test_sizes_without_units_are_those_of_the_pruned_model(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    for model in (made_growable(case), grown_at_once(case)):
        graph = history_of(model).graph
        units = {g: [0] for g, width in prunable_groups(graph, None, ()).items() if width > 1}
        request, sizes = as_request(graph, units), Sizes(model)
        with unchanged(model):
            expected = sizes.params_without(request), sizes.macs_without(request)
        assert sizes.params_without({}) == sizes.params
        model.shrink(request)
        after = Sizes(model)
        assert expected == (after.params, after.macs) != (sizes.params, sizes.macs)
        assert after.params == parameters(model)


def test_parameters_that_layers_share_count_once() -> None:
    model = splitgrow.growable(Tied(), torch.randint(30, (2, 5)))
    before = parameters(model)
    edit = model.prune(target=Target(params=0.6))
    assert 0.5 * before < parameters(model) <= 0.6 * before
    assert sum(item.parameters for item in edit.removed) == before - parameters(model)


def test_a_model_that_does_not_run_without_values_is_measured_with_them() -> None:
    class Elsewhere(nn.Module):
        """It makes a tensor on a device by name, which is not the meta device."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x + torch.zeros(3, device="cpu")))

    model = splitgrow.growable(Elsewhere().double(), torch.ones(2, 3).double())
    edit = model.prune(target=Target(macs=0.5))
    assert edit.macs == (3 * 8 + 8 * 2, 3 * 4 + 4 * 2)


def test_latency_is_measured_as_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def seconds(model: nn.Module) -> float:
        seen.append(model.training)
        return 1.0 + parameters(model)

    model = net()
    monkeypatch.setattr(target_module, "_seconds", seconds)
    start = seconds(model)
    edit = model.prune(target=Target(latency=0.5))
    assert edit is not None
    assert 0.45 * start < seconds(model) <= 0.5 * start


def test_the_timer_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    class Timer:
        median = 0.25

        def __init__(self, statement: str, globals: Any) -> None:  # noqa: A002
            self.run = lambda: eval(statement, globals)

        def timeit(self, number: int) -> None:
            self.run()

        def blocked_autorange(self, min_run_time: float) -> Any:
            del min_run_time
            self.run()
            return self

    monkeypatch.setattr(target_module, "Timer", Timer)
    model = net().train()
    with unchanged(model):
        assert Sizes(model).latency == 0.25
    model[0].eval()
    twin = copy.deepcopy(model)
    assert model.prune(target=Target(latency=1.0)) is None
    assert [m.training for m in model.modules()] == [m.training for m in twin.modules()]


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "nothing": ({}, ValueError, "a target has `macs`, `params` or `latency`"),
    "a text": ({"macs": "0.5"}, TypeError, "macs must be a number"),
    "a flag": ({"params": True}, TypeError, "params must be a number"),
    "zero": ({"params": 0}, ValueError, "params must be positive"),
    "below zero": ({"macs": -0.5}, ValueError, "macs must be positive"),
    "nan": ({"macs": float("nan")}, ValueError, "macs must be positive"),
    "more than all": ({"macs": 1.5}, ValueError, "give an int for a number"),
    "seconds": ({"latency": 1}, TypeError, "latency must be a share"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_targets_are_refused(name: str) -> None:
    arguments, error, match = BAD[name]
    with pytest.raises(error, match=match):
        Target(**arguments)
    assert str(Target(macs=0.5, params=7)) == "Target(macs=0.5, params=7)"
