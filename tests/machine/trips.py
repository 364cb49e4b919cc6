"""Copies and files: the same bits, and the same next step of training."""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import splitgrow
from machine.acts import make_optimizer
from machine.life import Earlier, Life, Refused
from machine.nets import made
from machine.oracle import Mirror
from machine.training import Trained

BEFORE, FOLLOW = "is from before", "splitgrow.follow"


def _assert_same(life: Life, other: Any) -> None:
    """The same tensors, bit for bit, the same edits, and the same closed generations."""
    one, two = life.model.state_dict(), other.state_dict()
    assert list(one) == list(two), "keys"
    names = [n for n in one if not life.marked or n != "_extra_state"]
    wrong = [name for name in names if not torch.equal(one[name], two[name])]
    assert not wrong, f"other bits: {', '.join(wrong[:4])}"
    assert splitgrow.handle(other).edits == splitgrow.handle(life.model).edits
    assert other.generation == life.model.generation
    trains = [p.requires_grad for p in life.model.parameters()]
    assert [p.requires_grad for p in other.parameters()] == trains, "requires_grad"
    life.same(life.output(other), life.output(), "outputs of the copy")
    for generation, closed in enumerate(life.closed):
        if life.recoverable(generation):
            with life.model.at(generation):
                old = life.output(width=closed.mirror.width)
            with other.at(generation):
                new = life.output(other, width=closed.mirror.width)
            life.same(new, old, f"at({generation}) of the copy")


def copied(life: Life, how: str, *, go_on: bool) -> None:
    """A deep copy, a pickle, or torch.save of the whole."""
    if how == "deepcopy":
        if go_on:
            life_hooks_off(life)
        other = copy.deepcopy(life.model)
    elif how == "pickle":
        life_hooks_off(life)
        other = pickle.loads(pickle.dumps(life.model))
    else:
        life_hooks_off(life)
        file = io.BytesIO()
        torch.save(life.model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    _assert_same(life, other)
    if go_on:
        life.adopt(other, None)
        life.untold = []


def life_hooks_off(life: Life) -> None:
    """Hooks of the machine are closures, which pickle does not take."""
    for handle, _ in life.hooks.values():
        handle.remove()
    life.hooks = {}


def fresh_of(life: Life) -> Any:
    return made(life.seed + 1, life.dtype, space=life.space)


def saved(life: Life, folder: Path, *, go_on: bool, growable: bool, seed: int) -> None:
    """`splitgrow.save` and `load` into a fresh model, with its training."""
    ready_optimizer(life)
    trained = life.trained
    assert trained is not None
    path = folder / "life.safetensors"
    extra = {"epoch": seed, "best": torch.tensor(0.5)}
    with splitgrow.execution(life.mode):
        splitgrow.save(
            life.model, path, optimizer=trained.optimizer, scheduler=trained.scheduler, extra=extra
        )
    fresh = fresh_of(life)
    if growable:
        splitgrow.growable(fresh, life.probe(2))
    again = Trained(trained.how, "one", fresh, by_name=trained.by_name)
    with splitgrow.execution("auto"):
        found = splitgrow.load(fresh, path, optimizer=again.optimizer, scheduler=again.scheduler)
    assert found["epoch"] == seed
    assert torch.equal(found["best"], extra["best"])
    fresh.train(life.model.training)
    _finish(life, fresh, again, go_on=go_on, seed=seed)


def ready_optimizer(life: Life) -> None:
    if life.trained is None:
        make_optimizer(life, "AdamW", "dims", by_name=True)
        life.untold = []


def _finish(life: Life, fresh: Any, again: Trained, *, go_on: bool, seed: int) -> None:
    trained = life.trained
    assert trained is not None
    _assert_same(life, fresh)
    if life.channels_last:  # which no state carries; other kernels round gradients otherwise
        fresh.to(memory_format=torch.channels_last)
        again.lie_as_parameters()
    again.grouping = trained.grouping
    life.trains_both((life.model, trained), (fresh, again), seed)
    life.untold = []  # those steps have told of them
    if go_on:
        for closed in life.closed if life.channels_last else ():
            closed.output = None
        life.adopt(fresh, again)


def through_state_dicts(life: Life, *, go_on: bool, early: bool, seed: int) -> None:
    """The states of model and optimizer, through torch.save, as trainers resume."""
    ungrown = not splitgrow.handle(life.model).edits
    if ungrown and life.by_hand:  # without a journal, as torch has it
        raise Refused
    trained = life.trained
    # Torch loads NAdam's numbers, which are in float32, as the parameters' dtype.
    other = trained is not None and trained.how == "NAdam" and life.dtype != torch.float32
    if trained is None or other or not trained.by_name or trained.lacks(life.model):
        make_optimizer(life, "AdamW", "dims", by_name=True)
        life.untold = []
    trained = life.trained
    assert trained is not None
    file = io.BytesIO()
    schedule = trained.scheduler.state_dict()
    torch.save((life.model.state_dict(), trained.optimizer.state_dict(), schedule), file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    fresh = splitgrow.growable(fresh_of(life), life.probe(2))
    again = Trained(trained.how, "one", fresh, by_name=True) if early else None
    fresh.load_state_dict(states[0])
    again = again or Trained(trained.how, "one", fresh, by_name=True)
    again.optimizer.load_state_dict(states[1])
    again.scheduler.load_state_dict(states[2])
    fresh.train(life.model.training)
    _finish(life, fresh, again, go_on=go_on, seed=seed)


def keep_state(life: Life) -> None:
    state = copy.deepcopy(life.model.state_dict())
    edits = len(splitgrow.handle(life.model).edits)
    values = [(p, p.detach().clone()) for p in life.model.parameters()]
    closed = [replace(one) for one in life.closed]
    mirror = copy.deepcopy(life.mirror)
    kept = Earlier(
        state, edits, values, life.era, mirror, dict(life.trains), life.exact_from, closed
    )
    life.earlier = [*life.earlier[-2:], kept]


def load_earlier(life: Life, index: int) -> None:
    """A state_dict of this model from earlier: its parameters go back, those added since stay."""
    if not life.earlier:
        raise Refused
    earlier = life.earlier[index % len(life.earlier)]
    if earlier.wider:
        life.refuses(lambda: life.model.load_state_dict(earlier.state), splitgrow.CheckpointError)
        return
    before = life.snapshot()
    grown = earlier.edits < len(splitgrow.handle(life.model).edits)
    with life.told(BEFORE, FOLLOW, must=BEFORE if grown else ""):
        life.model.load_state_dict(earlier.state)
    then = {id(p): value for p, value in earlier.values}
    for name, parameter in life.model.named_parameters():
        expected = then.get(id(parameter), before[name])
        assert torch.equal(parameter.detach(), expected), f"{name} after an earlier state_dict"
    if not grown and earlier.era != life.era and "_extra_state" in earlier.state:
        _as_it_was(life, earlier)
    changed_past(life)
    if grown:
        _past_of_then(life, earlier)


def _past_of_then(life: Life, earlier: Earlier) -> None:
    """The generation that was open then is shown with the statistics of then.

    If it grew further before it was closed, the statistics that are shown are taken as they are.
    """
    generation = len(earlier.closed)
    if generation >= len(life.closed) or not life.recoverable(generation):
        return
    closed = life.closed[generation]
    closed.output = None
    same = _parts(closed.mirror) == _parts(earlier.mirror)
    with life.model.at(generation):
        shown = life.snapshot()
    for name in closed.values:
        if name not in closed.parameters:
            path, _, last = name.rpartition(".")
            now = name if name in shown else f"{path}.0.{last}"  # its layer has grown since
            found = earlier.state[name] if same else shown[now]
            closed.values[name] = found.clone()


def _parts(mirror: Mirror) -> dict[str, int]:
    return {path: len(layer.parts) for path, layer in mirror.layers.items()}


def _as_it_was(life: Life, earlier: Earlier) -> None:
    """The same blocks, so that the generations of then come back as well."""
    life.era, life.exact_from = earlier.era, earlier.exact_from
    life.mirror, life.trains = copy.deepcopy(earlier.mirror), dict(earlier.trains)
    life.by_hand = {key for key in life.by_hand if not life.trains[key]}
    life.closed = [replace(one) for one in earlier.closed]
    life.earlier = [one for one in life.earlier if one.era <= earlier.era]


def changed_past(life: Life) -> None:
    """Closed generations have today's parameters, and are recorded anew if these have changed."""
    for closed in life.closed:
        for name, parameter in closed.parameters.items():
            if not torch.equal(closed.values[name], parameter.detach()):
                closed.values[name] = parameter.detach().clone()
                closed.output = None


def without_journal(life: Life) -> None:
    """The tensors alone, into the same model: nothing changes."""
    state = copy.deepcopy(life.model.state_dict())
    state.pop("_extra_state", None)
    before = life.snapshot()
    with life.told(FOLLOW):  # of an average that is behind already
        life.model.load_state_dict(state)
    after = life.snapshot()
    wrong = [name for name in before if not torch.equal(before[name], after[name])]
    assert not wrong, f"changed by its own tensors: {', '.join(wrong[:4])}"


def other_prefix(life: Life, seed: int) -> None:
    """A state_dict of a module around the model."""
    if not splitgrow.handle(life.model).edits and life.by_hand:
        raise Refused
    outer = torch.nn.Sequential(life.model)
    state = copy.deepcopy(outer.state_dict())
    other = torch.nn.Sequential(splitgrow.growable(fresh_of(life), life.probe(2)))
    other.load_state_dict(state)
    other.train(life.model.training)
    _assert_same(life, other[0])
