"""A run that is stopped and resumed grows as one that is not."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from grown_policies import convolutional, policy, sgd, train_step, widths
from helpers import assert_identical

import splitgrow
from splitgrow import Budget, ComputeShares, Cycles, Every, Factor, Gap, Plateau, Score

RULES: dict[str, dict[str, Any]] = {
    "steps": {"when": Every(2)},
    "shares": {"when": ComputeShares([0.1, 0.5], macs=5e6)},
    "plateau": {"when": Plateau("loss", patience=2, min_delta=0.2)},
    "gap": {"when": Gap("loss", "val", 0.5, patience=1, min_delta=0.2)},
    "warm-up": {"when": Every(2), "warmup": 1, "absorb": True},
    "budget": {"when": Every(2), "to": Budget(params=9_000), "absorb": True},
    "shrinks": {"when": Every(2), "to": Factor(0.5)},
    "cycles": {"when": Every(1), "to": Cycles(Budget(macs=30_000)), "absorb": True},
    "score": {"when": Every(2), "where": Score(lambda net: {**widths(net)}, share=0.5)},
}


class Run:
    """A training that can be saved, and loaded into one that was made anew."""

    def __init__(self, rule: str) -> None:
        self.model = convolutional()
        self.optimizer = sgd(self.model)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 3, 0.5)
        self.grower = policy(self.model, self.optimizer, self.scheduler, **RULES[rule])
        self.grown: list[tuple[int, dict[str, int]]] = []

    def train(self, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            loss = train_step(self.model, self.optimizer, step)
            self.scheduler.step()
            edit = self.grower.step({"loss": loss, "val": loss + 0.1})
            if edit is not None:
                self.grown.append((step, widths(self.model)))

    def save(self, path: Any) -> None:
        states = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        splitgrow.save(self.model, path, **states, extra=self.grower.state_dict())

    def load(self, path: Any) -> None:
        states = {"optimizer": self.optimizer, "scheduler": self.scheduler}
        self.grower.load_state_dict(splitgrow.load(self.model, path, **states))


@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_run_grows_at_the_same_steps_to_the_same_values(rule, tmp_path) -> None:
    whole = Run(rule)
    whole.train(range(1, 9))
    assert whole.grown
    for stop in (3, 5):
        first = Run(rule)
        first.train(range(1, stop + 1))
        first.save(tmp_path / f"{stop}")
        resumed = Run(rule)
        resumed.load(tmp_path / f"{stop}")
        assert str(resumed.grower.plan()) == str(whole.grower.plan())
        resumed.train(range(stop + 1, 9))
        assert first.grown + resumed.grown == whole.grown
        assert resumed.grower.state_dict() == whole.grower.state_dict()
        assert resumed.grower.macs_spent == whole.grower.macs_spent
        assert_identical([*resumed.model.parameters()], [*whole.model.parameters()])


def test_control_without_the_grower_s_state_it_grows_at_other_steps(tmp_path) -> None:
    whole, first, resumed = Run("steps"), Run("steps"), Run("steps")
    whole.train(range(1, 9))
    first.train(range(1, 4))
    first.save(tmp_path / "3")
    splitgrow.load(resumed.model, tmp_path / "3", optimizer=resumed.optimizer)
    resumed.train(range(4, 9))
    assert first.grown + resumed.grown != whole.grown


def test_a_state_is_plain_data() -> None:
    run = Run("plateau")
    run.train(range(1, 6))
    state = run.grower.state_dict()
    assert json.loads(json.dumps(state)) == state


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing() -> None:
    run, other = Run("steps"), Run("plateau")
    run.train(range(1, 4))
    state = run.grower.state_dict()
    before = other.grower.state_dict()
    fresh = Run("steps")
    for grower, given, message in [
        (other.grower, state, "another policy"),
        (fresh.grower, state, "load the model of the same checkpoint first"),
        (fresh.grower, {**state, "version": 7}, "version"),
        (fresh.grower, {}, "version"),
        (fresh.grower, {**state, "step": "3"}, "state.step"),
        (fresh.grower, {**state, "notes": 3}, "notes"),
        (fresh.grower, {**state, "growths": 9}, "growths"),
        (fresh.grower, {**state, "schedule": {}}, "schedule"),
        (fresh.grower, {**state, "extra": object()}, "plain data"),
    ]:
        with pytest.raises(ValueError, match=message):
            grower.load_state_dict(given)
    assert other.grower.state_dict() == before
    assert fresh.grower.state_dict() == Run("steps").grower.state_dict()


def test_a_grower_made_of_the_loaded_model_takes_the_plan_of_the_state(tmp_path) -> None:
    whole, first = Run("steps"), Run("steps")
    whole.train(range(1, 7))
    first.train(range(1, 4))
    first.save(tmp_path / "3")
    model = convolutional()
    optimizer = sgd(model)
    extra = splitgrow.load(model, tmp_path / "3", optimizer=optimizer)
    grower = policy(model, optimizer, to=Factor(2.0), when=Every(2))
    assert grower.plan().start.widths == whole.grower.plan().growths[0].widths
    grower.load_state_dict(extra)
    for step in range(4, 7):
        train_step(model, optimizer, step)
        grower.step()
    assert widths(model) == widths(whole.model)
