"""Inserted layers go again: the network is the plain one without them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch

import splitgrow
from machine.life import Before, Life, Refused
from machine.oracle import Mirror
from splitgrow.growth.history_lookup import history_of


def remove(life: Life, index: int, *, give_up: bool, tell: bool) -> None:
    """What was inserted goes, with all that was inserted in it."""
    if not life.mirror.inserted:
        raise Refused
    item = life.mirror.inserted[index % len(life.mirror.inserted)]
    after = without(life.mirror, item.name)
    lost = [
        generation
        for generation, closed in enumerate(life.closed)
        if life.recoverable(generation)
        and any(held.name == item.name for held in closed.mirror.inserted)
    ]

    def take(optimizer: Any = None) -> Any:
        return life.model.remove_layer(item.name, give_up=give_up, optimizer=optimizer)

    if lost and not give_up:
        life.refuses(take, splitgrow.GenerationError)
        raise Refused
    if not fits(after):
        life.refuses(take, splitgrow.InexactError)
        raise Refused

    def check(before: Before, edit: Any) -> None:
        assert edit.gives_up == tuple(lost), f"gives up {edit.gives_up}, not {lost}"
        for generation in lost:
            life.closed[generation].given_up = True
        gone = {n: p for n, p in before.parameters.items() if _inside(n, item.name)}
        _check_model(life, before, edit, gone)
        _check_others(life, gone, tell=tell)

    life.edit(
        take,
        lambda _: setattr(life, "mirror", after),
        (),
        tell=tell,
        stir=False,
        after=check,
    )


def _check_model(life: Life, before: Before, edit: Any, gone: Mapping[str, Any]) -> None:
    own = dict(life.model.named_parameters())
    stay = {n: p for n, p in before.parameters.items() if n not in gone}
    assert list(own) == list(stay), "other parameters"
    assert all(own[name] is parameter for name, parameter in stay.items()), "other objects"
    wrong = [n for n, p in own.items() if not torch.equal(p.detach(), before.values[n])]
    assert not wrong, f"{wrong[0]} has other values"
    (removal,) = edit.removed_layers
    assert removal.parameters == sum(p.numel() for p in gone.values()), "its number"
    if life.numeric:
        now = life.output()
        life.close(now, life.mirror.outputs(life.snapshot(), life.probe()), f"oracle, {edit}")
        if edit.moved is None and measured_on_probe(life):
            life.close(now, before.output, f"outputs after {edit}")


def measured_on_probe(life: Life) -> bool:
    """Whether an edit measures the outputs on the inputs by which lives are judged.

    It does until the inputs gain channels, which have other values there.
    """
    (given,) = history_of(life.model).inputs.args
    return given.shape == life.probe().shape and torch.equal(given.to(life.dtype), life.probe())


def _check_others(life: Life, gone: Mapping[str, Any], *, tell: bool) -> None:
    """Optimizers, averages and state_dicts from before."""
    keys = {id(p) for p in gone.values()}
    life.by_hand -= keys
    life.untold = [p for p in life.untold if id(p) not in keys]
    life._tell([], keys, tell=tell)
    for average in life.averages:
        average.keeps(gone.values())
        if average.follows and not average.behind:
            average.catches_up(life.model)
        else:
            average.behind = True
    # Tensors without a journal fit again where nothing else was ever done.
    life.earlier = [earlier for earlier in life.earlier if "_extra_state" in earlier.state]
    for earlier in life.earlier:
        earlier.wider = True


def without(mirror: Mirror, name: str) -> Mirror:
    """The network without what was inserted as `name`; the mirror stays as it is."""
    made = copy.deepcopy(mirror)
    made.inserted = [item for item in made.inserted if not _inside(item.name, name)]
    for store in (made.kinds, made.layers):
        for path in [path for path in store if _inside(path, name)]:
            del store[path]
    return made


def _inside(path: str, name: str) -> bool:
    return f"{path}.".startswith(f"{name}.")


def fits(mirror: Mirror) -> bool:
    """Whether each layer reads as many channels as its parts do, and ties are of equal widths."""
    axes = mirror.axes()
    for path, layer in mirror.layers.items():
        width = sum(mirror.width_of(axis) for axis in axes.ins[path])
        cells = {cell for part in layer.parts for cell in part.cols}
        if width != (layer.width if layer.norm else len(cells)):
            return False
    roots = {axis: axes.root(axis) for axis in (*mirror.layers, "x")}
    return all(mirror.width_of(axis) == mirror.width_of(root) for axis, root in roots.items())
