"""Random lives of a growable model: the laws hold after every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import MANY
from machine import __main__ as command
from machine import acts, laws
from machine.life import Life
from machine.runs import batch
from torch import nn

import splitgrow
from splitgrow.growth.history_lookup import history_of

PARTS = 4
SEQUENCES = int(5 * MANY)
"""Of each part."""


@pytest.mark.parametrize("part", range(PARTS))
def test_the_laws_hold_after_every_step_of_a_life(part: int) -> None:
    fault = batch(SEQUENCES, part)
    assert fault is None, f"{fault.kind}\n{fault.story}"


# -- what is planted is found ------------------------------------------------------------------


def life(*, average: bool = False, optimizer: bool = False) -> Life:
    made = Life(0, space=False)
    if average:
        acts.make_average(made, "EMA", told=True)
    if optimizer:
        acts.make_optimizer(made, "AdamW", "one", by_name=True)
    return made


def grow(made: Life, *, tell: bool = False) -> None:
    acts.expand(made, {0: 2}, 1, freeze=True, tell=tell, index=False)


def grow_and_check(made: Life, *, tell: bool = False) -> None:
    grow(made, tell=tell)
    laws.check(made)


def test_a_helper_that_is_not_zero_is_found() -> None:
    made = life()
    before = made.model.expand_layer

    def expand(*args: Any, **kwargs: Any) -> Any:
        edit = before(*args, **kwargs)
        with torch.no_grad():
            for parameter in made.model.parameters_of(edit):
                parameter.add_(0.3)
        return edit

    made.model.__dict__["expand_layer"] = expand
    with pytest.raises(AssertionError, match="outputs after"):
        grow(made)


def test_an_average_that_is_not_told_is_found() -> None:
    made = life(average=True)
    history_of(made.model).kin.followers = []
    with pytest.raises((AssertionError, RuntimeError, ValueError)):
        grow_and_check(made)


def test_averages_that_begin_with_other_values_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitgrow.growth.averages.begin_averages_", lambda *_: None)
    made = life(average=True)
    with pytest.raises(AssertionError, match="the average of"):
        grow_and_check(made)


def test_an_optimizer_joined_in_another_order_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitgrow.growth.growing.arrange_", lambda *_: None)
    made = life(optimizer=True)
    with pytest.raises(AssertionError, match="not in the model's order"):
        grow_and_check(made, tell=True)


@torch.no_grad()
def _move(model: nn.Module) -> None:
    next(model.parameters()).add_(0.01)


def test_a_past_that_moves_is_found() -> None:
    made = life()
    grow(made)
    _move(made.model)
    with pytest.raises(AssertionError, match=r"at\(0\)"):
        laws.check(made)


def test_a_merge_that_computes_something_else_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    merge = splitgrow.merge

    def moved(*args: Any) -> nn.Module:
        merged = merge(*args)
        _move(merged)
        return merged

    monkeypatch.setattr(splitgrow, "merge", moved)
    made = life()
    grow(made)
    with pytest.raises(AssertionError, match="merge"):
        laws.check(made, thorough=True)


def test_a_mistake_that_changes_something_is_found() -> None:
    made = life()

    def fails() -> None:
        _move(made.model)
        raise ValueError("after a change")

    with pytest.raises(AssertionError, match="a refused call changed"):
        made.refuses(fails, ValueError)
    with pytest.raises(AssertionError, match="was not refused"):
        made.refuses(lambda: None, ValueError)


def test_a_fault_comes_with_the_steps_that_led_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise KeyError("a")

    monkeypatch.setattr(splitgrow, "merge", fails)
    fault = batch(5, 0)
    assert fault is not None
    assert fault.kind.startswith("KeyError")
    assert "state.begin(" in fault.story


# -- the command -------------------------------------------------------------------------------


def test_the_command_counts_sequences_and_faults(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["machine", "--sequences", "4", "--size", "2", "--seed", "1"])
    try:
        assert command.main() == 0
    finally:
        torch.set_num_threads(threads)
    assert " sequences, 0 faults" in capsys.readouterr().out
