"""Learners in files: saved, loaded, killed, failed; they continue as if nothing had happened."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import steps_and_seconds
from lessons import MASKED, SHARING, images, learned, learner, net, outputs, task
from torch import nn

import splitgrow
from splitgrow import CheckpointError
from splitgrow.continual import EpochDone, Event, Grown, Judged, Learner, TaskLearned, Training

ALL = (*MASKED, *SHARING, "separate")


def state(made: Learner) -> dict[str, Any]:
    """All that a learner knows, apart from times."""
    body = made.body
    return {
        "values": {name: slot.tensor.clone() for name, slot in body.slots.items()},
        "owners": {name: owners.clone() for name, owners in body.owners.items()},
        "records": [{**r.written(), "seconds": 0} for r in made.records],
        "edit": body.edit,
        "first": body.weights,
        "more": made._extra(),
    }


def same(one: Any, other: Any) -> bool:
    """Whether two trees are equal, tensors bit for bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return {*one} == {*other} and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("method", ALL)
def test_a_learner_that_was_loaded_gives_the_same_and_goes_on_alike(
    method: str, tmp_path: Path
) -> None:
    made, path = learned(method, 2), tmp_path / "learner.safetensors"
    made.save(path)
    again = learner(method)
    again.load(path)
    assert same(state(again), state(made))
    assert same(outputs(again), outputs(made))
    for each in (made, again):
        each.learn(task(2))
    assert same(state(again), state(made))
    assert same(outputs(again), outputs(made))


@pytest.mark.parametrize("method", ALL)
def test_the_same_seed_learns_the_same_and_another_does_not(method: str) -> None:
    made = learned(method, 2)
    torch.manual_seed(5)  # what the user draws meanwhile is of no account
    assert same(state(learned(method, 2)), state(made))
    assert not same(state(learned(method, 2, seed=1)), state(made))


def test_learning_leaves_the_users_model_and_random_numbers_alone() -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    made = type(learner("cpg"))(model, images(0, 2), goal=1.0, training=Training(epochs=1))
    made.learn(task(0))
    assert torch.equal(torch.get_rng_state(), drawn)
    assert same(dict(model.state_dict()), before)
    assert type(model).__name__ == "Net"


class Stopped(Exception):  # noqa: N818
    """What a callback raises."""


@pytest.mark.parametrize("method", ALL)
def test_a_learner_whose_learning_fails_is_as_before(method: str) -> None:
    """However often it fails, and wherever: then it learns as one that never failed."""
    made = learned(method, 1)
    before, given = state(made), outputs(made)
    failed = 0
    for kind, count in itertools.product((EpochDone, Judged, Grown), (1, 3)):
        if _fails(made, kind, count):
            failed += 1
            assert same(state(made), before)
            assert same(outputs(made), given)
        else:  # there were not so many events
            made = learned(method, 1)
    assert failed
    made.learn(task(1))
    assert same(state(made), state(learned(method, 2)))


def _fails(made: Learner, kind: type[Event], count: int) -> bool:
    """Whether learning was stopped at an event of some kind."""
    left = [count]

    def fail(event: Event) -> None:
        left[0] -= isinstance(event, kind)
        if not left[0]:
            raise Stopped

    made._callbacks = (fail,)
    try:
        made.learn(task(1))
    except Stopped:
        return True
    else:
        return False
    finally:
        made._callbacks = ()


@pytest.mark.parametrize("method", ["cpg", "packnet", "ewc", "lwf", "separate"])
def test_what_was_trained_before_a_failure_is_not_trained_again(
    method: str, tmp_path: Path
) -> None:
    expected = state(learned(method, 2))
    trained: list[tuple[str, str, int]] = []
    stop_after = 2

    def watch(event: Event) -> None:
        if isinstance(event, EpochDone):
            trained.append((event.task, event.stage, event.epoch))
            if len(trained) == stop_after:
                raise Stopped

    def go_on() -> Learner:
        made = learner(method, directory=tmp_path, save_every=0, callbacks=[watch])
        made.resume()
        for index in range(len(made.records), 2):
            made.learn(task(index))
        return made

    for _ in range(60):
        try:
            made = go_on()
            break
        except Stopped:
            stop_after = len(trained) + 2
    assert same(state(made), expected)
    # Each epoch once, but for those in which it was stopped before they were written.
    assert len(trained) <= len({*trained}) + 30
    assert len({*trained}) == len([*dict.fromkeys(trained)])
    assert [path.name for path in tmp_path.iterdir()] == ["learner.safetensors"]


KILLED = """
import hashlib, sys, torch
sys.path[:0] = ["tests", "tests/continual"]
torch.set_num_threads(1)
from pathlib import Path
from killing import Steps
from lessons import learner, task, outputs
made = learner(sys.argv[1], directory=Path(sys.argv[2]), save_every=0)
made.resume()
with Steps() as steps:
    for index in range(len(made.records), 3):
        made.learn(task(index))
digest = hashlib.sha256()
for name, value in outputs(made).items():
    digest.update(name.encode() + value.detach().numpy().tobytes())
print(digest.hexdigest(), steps.taken)
"""


def run(method: str, directory: Path, **environment: str) -> tuple[int, list[str]]:
    """The exit code and the words printed."""
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, method, str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": ".", **environment},
        check=False,
    )
    return ended.returncode, ended.stdout.split()


@pytest.mark.slow
def test_a_run_that_was_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    _, (digest, steps) = run("cpg", tmp_path / "whole")
    draw = random.Random(0)
    for _ in range(3):
        moment = steps_and_seconds(draw.randint(1, int(steps) // 5), draw.uniform(0, 0.05))
        assert run("cpg", tmp_path / "killed", **moment) == (-signal.SIGKILL, [])
    _, (found, rest) = run("cpg", tmp_path / "killed")
    assert found == digest
    assert int(rest) < int(steps)  # it went on, and did not begin anew


def test_a_file_of_other_settings_another_method_or_no_learner_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "learner.safetensors"
    learned("packnet", 1).save(path)
    with pytest.raises(CheckpointError, match=r"other settings: prune 0.6, not 0.5"):
        learner("packnet", prune=0.5).load(path)
    with pytest.raises(CheckpointError, match="method 'packnet', not 'piggyback'"):
        learner("piggyback").load(path)
    with pytest.raises(ValueError, match="learned tasks already"):
        learned("packnet", 1).load(path)
    model = splitgrow.growable(nn.Sequential(nn.Linear(2, 2)), torch.ones(1, 2))
    splitgrow.save(model, path)
    with pytest.raises(CheckpointError):
        learner("packnet").load(path)


@pytest.mark.parametrize("what", ["owners", "records", "weights"])
def test_a_file_with_a_part_that_does_not_fit_is_refused_and_the_learner_stays(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, path = learned("packnet", 1), tmp_path / "learner.safetensors"
    if what == "owners":
        name = next(iter(made.body.owners))
        made.body.owners[name] = made.body.owners[name] + 7
    elif what == "records":
        made.records[0].classes = 5
    else:
        made.body.weights = "many"  # type: ignore[assignment]
    made.save(path)
    fresh = learner("packnet")
    before = state(fresh)
    with pytest.raises(CheckpointError):
        fresh.load(path)
    assert same(state(fresh), before)
    fresh.learn(task(0))


def test_a_stage_of_another_run_is_refused(tmp_path: Path) -> None:
    def stop(event: Event) -> None:
        if isinstance(event, Judged):
            raise Stopped

    made = learner("packnet", directory=tmp_path, callbacks=[stop])
    with pytest.raises(Stopped):
        made.learn(task(0))
    assert len([*tmp_path.iterdir()]) == 1
    with pytest.raises(CheckpointError, match="of another run"):
        learner("packnet", directory=tmp_path, seed=3).learn(task(0))


def test_what_is_learned_is_told_once_it_is_written(tmp_path: Path) -> None:
    events: list[Event] = []
    made = learner("packnet", directory=tmp_path, callbacks=[events.append])
    made.learn(task(0))
    last = events[-1]
    assert isinstance(last, TaskLearned)
    assert (last.task, last.accuracy) == ("task 0", made.records[0].accuracy)
    assert json.dumps(last.details)
    assert (tmp_path / "learner.safetensors").exists()


def test_time_that_a_stopped_process_trained_for_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every epoch takes an hour."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])

    def watch(event: Event) -> None:
        clock[0] += 3600 * isinstance(event, EpochDone)
        if isinstance(event, EpochDone) and event.stage.startswith("retrain") and len(made) == 1:
            raise Stopped

    made = [learner("packnet", directory=tmp_path, callbacks=[watch], save_every=0)]
    with pytest.raises(Stopped):
        made[0].learn(task(0))
    made.append(learner("packnet", directory=tmp_path, callbacks=[watch], save_every=0))
    record = made[1].learn(task(0))
    assert record.seconds == 3 * 3600  # two epochs, and one after pruning, which was made twice
