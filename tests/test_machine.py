"""Random lives of a growable model: the laws hold after every step."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import MANY
from machine import __main__ as command
from machine import acts, laws, removing, shrinking
from machine.life import Life, Refused
from machine.runs import batch
from torch import Tensor, nn

import splitgrow
from splitgrow.growth import optimizer_merge
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.shrinking import block_parts

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


# -- channels that go --------------------------------------------------------------------------


def shrink(
    made: Life, how: str = "new", count: int = 1, *, layer: int = 0, give_up: bool = False
) -> None:
    tell = made.trained is not None
    shrinking.shrink(made, [layer], how, count, seed=1, round_to=1, give_up=give_up, tell=tell)
    laws.check(made)


def grown_life(**options: bool) -> Life:
    made = life(**options)
    grow(made, tell=options.get("optimizer", False))
    if made.trained is not None:
        made.step(1, training=True, passes=1)
    if made.averages:
        acts.update_averages(made, 2)
    return made


def test_channels_go_and_the_laws_hold() -> None:
    made = grown_life(average=True, optimizer=True)
    shrink(made)
    with pytest.raises(Refused):
        shrink(made, "any", 4)
    shrink(made, "any", 4, give_up=True)
    assert made.closed[0].given_up
    assert made.trained is not None


def test_channels_in_another_order_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    part = block_parts.part_at

    def turned(tensor: Tensor, kept: Any) -> Tensor:
        return part(tensor, {dim: positions.flip(0) for dim, positions in kept.items()})

    monkeypatch.setattr("splitgrow.growth.shrinking.narrowing.part_at", turned)
    with pytest.raises(AssertionError, match="has other values"):
        shrink(life(), "any", layer=1)


def test_a_state_that_begins_anew_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = optimizer_merge.plan_replacing

    def anew(*args: Any) -> Any:
        replacing = plan(*args)
        for item in replacing:
            item.state["exp_avg"].zero_()
        return replacing

    monkeypatch.setattr("splitgrow.pruning.shrinking.shrinking.plan_replacing", anew)
    with pytest.raises(AssertionError, match=r"the optimizer's exp_avg of .* has other values"):
        shrink(grown_life(optimizer=True))


def test_parameters_that_stay_in_an_optimizer_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitgrow.pruning.shrinking.shrinking.leave_", lambda *_: None)
    with pytest.raises(AssertionError, match="an optimizer's parameters"):
        shrink(grown_life(optimizer=True), count=2)


def test_averages_that_become_the_model_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    made = grown_life(average=True)
    with torch.no_grad():
        made.model.norm[1].bias.add_(1)

    def begin(copied: Any, model: Any, *_: Any) -> None:
        with torch.no_grad():
            copied.norm[1].bias.copy_(model.norm[1].bias)

    monkeypatch.setattr("splitgrow.growth.averages.begin_averages_", begin)
    with pytest.raises(AssertionError, match=r"the average of .*bias has other values"):
        shrink(made)


def test_a_closed_generation_that_loses_channels_unasked_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("splitgrow.pruning.shrinking.shrinking._given_up", lambda *_: ())
    with pytest.raises(AssertionError, match="a mistake was not refused"):
        shrink(grown_life(), "any", 4)
    with pytest.raises(AssertionError, match=r"gives up \(\), not \[0\]"):
        shrink(grown_life(), "any", 4, give_up=True)


def test_a_closed_generation_that_moves_as_channels_go_is_found() -> None:
    made = grown_life()
    before = made.model.shrink

    def moves(*args: Any, **kwargs: Any) -> Any:
        edit = before(*args, **kwargs)
        _move(made.model)
        return edit

    made.model.__dict__["shrink"] = moves
    with pytest.raises(AssertionError, match="has other values"):
        shrink(made)


# -- layers that go ----------------------------------------------------------------------------


def inserted_life(**options: bool) -> Life:
    made = life(**options)
    acts.insert(made, 0, "residual", freeze=True, tell=options.get("optimizer", False))
    if made.trained is not None:
        made.step(1, training=True, passes=1)
    return made


def remove(made: Life, *, give_up: bool = False) -> None:
    removing.remove(made, 0, give_up=give_up, tell=made.trained is not None)
    laws.check(made)


def test_inserted_layers_go_and_the_laws_hold() -> None:
    made = inserted_life(average=True, optimizer=True)
    acts.next_generation(made)
    with pytest.raises(Refused):
        remove(made)
    remove(made, give_up=True)
    assert [closed.given_up for closed in made.closed] == [False, True]
    assert not made.mirror.inserted


def test_parameters_of_a_layer_that_stay_in_an_optimizer_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("splitgrow.pruning.removing.removing.leave_", lambda *_: None)
    with pytest.raises((AssertionError, KeyError)):
        remove(inserted_life(optimizer=True))


def test_a_closed_generation_that_loses_a_layer_unasked_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("splitgrow.pruning.removing.removing.lost_generations", lambda *_: ())
    made = inserted_life()
    acts.next_generation(made)
    with pytest.raises(AssertionError, match="a mistake was not refused"):
        remove(made)


def test_constants_that_are_lost_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(life(), "constant", layer=3)
    monkeypatch.setattr(
        "splitgrow.pruning.shrinking.folding.contributed", lambda *_: torch.zeros(9)
    )
    with pytest.raises((AssertionError, splitgrow.InexactError)):
        shrink(life(), "constant", layer=3)


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
