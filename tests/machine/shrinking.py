"""Channels go: the network is the plain one without them, with all that belongs to it."""

from __future__ import annotations

import gc
import random
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

import splitgrow
from machine.averages import Averaged
from machine.life import Before, Life, Refused
from machine.removal import Taken, strengths, take_out
from machine.removing import measured_on_probe

HOWS = ("new", "new", "any", "number", "first", "constant")
"""Newer channels, any, a number, all that a layer had before it grew, or any of zero weights."""
FIRST = 4


def shrink(
    life: Life,
    layers: list[int],
    how: str,
    count: int,
    *,
    seed: int,
    round_to: int,
    give_up: bool,
    tell: bool,
) -> None:
    """Some layers lose channels, by their places or as a number."""
    request, chosen = _drawn(life, layers, how, count, seed, round_to)
    options: dict[str, Any] = {"give_up": give_up, "round_to": round_to}
    fixed = (splitgrow.FixedWidthError,) if life.mirror.inserted else ()
    axes = life.mirror.axes()
    gone: dict[str, set[int]] = {}
    for path, channels in chosen.items():
        gone.setdefault(axes.root(path), set()).update(channels)
    if any(len(own) >= life.mirror.width_of(root) for root, own in gone.items()):
        life.refuses(lambda: life.model.shrink(request, **options), ValueError, *fixed)
        raise Refused
    if how == "constant":
        _make_constant(life, gone)
    lost = losing(life, gone)
    taken = take_out(life.mirror, gone)
    may: tuple[type[BaseException], ...] = fixed
    if lost and not give_up:
        _refuses(life, request, options, splitgrow.GenerationError, *fixed)
    if taken.absorbed and life.model.generation:
        error = splitgrow.UnsupportedLayerError
        life.refuses(lambda: life.model.shrink(request, **options), error, *fixed)
        raise Refused
    if taken.absorbed:  # hooks, and blocks that train in different ways, let a layer stay grown
        errors = splitgrow.UnsupportedLayerError, splitgrow.UnsupportedModelError
        may = (*may, *errors, splitgrow.OptimizerError)
    try:
        planned = life.model.plan_shrinking(request, **options)
    except fixed as error:
        raise Refused from error
    kept = _Kept(life, taken)

    def after(before: Before, edit: Any) -> None:
        assert (planned.removed, planned.gives_up) == (edit.removed, edit.gives_up), "planned"
        assert edit.gives_up == tuple(lost), f"gives up {edit.gives_up}, not {lost}"
        for generation in lost:
            life.closed[generation].given_up = True
        kept.check(life, before, edit, tell=tell)
        _moved(life, before, edit, gone, constant=how == "constant")

    life.edit(
        lambda o: life.model.shrink(request, optimizer=o, **options),
        lambda _: setattr(life, "mirror", taken.after),
        may,
        tell=tell,
        stir=False,
        after=after,
    )


def _moved(
    life: Life, before: Before, edit: Any, gone: Mapping[str, set[int]], *, constant: bool
) -> None:
    """The outputs stay where the edit says so, and where only constants go."""
    if not life.numeric:
        return
    if edit.moved is None and measured_on_probe(life):
        head = gone.get(before.mirror.axes().root("head"), set())
        stay = [n for n in range(before.output.shape[1]) if n not in head]
        life.close(life.output(), before.output[:, stay], f"outputs after {edit}")
    # Some convolutions pad, and what hooks do is not known.
    if constant and not (life.space or life.mirror.inserted or life.hooks):
        assert edit.moved is None, f"constants moved the outputs by {edit.moved}"


def _make_constant(life: Life, gone: Mapping[str, set[int]]) -> None:
    """Sets to zero the weights that make some channels, unless closed generations show them."""
    if any(life.recoverable(n) for n in range(len(life.closed))):
        raise Refused
    # Biases take over constants: those of an average that is behind only when it catches up.
    life.averages = [a for a in life.averages if a.follows and not a.behind]
    gc.collect()
    axes, own = life.mirror.axes(), dict(life.model.named_parameters())
    for path, layer in life.mirror.layers.items():
        channels = gone.get(axes.root(path), set())
        for name, part in zip(layer.names(path), layer.parts, strict=True):
            rows = [n for n, row in enumerate(part.rows) if row in channels]
            if rows and not layer.norm:
                with torch.no_grad():
                    own[f"{name}.weight"][rows] = 0


def _refuses(life: Life, request: Any, options: Any, *errors: type[BaseException]) -> None:
    life.refuses(lambda: life.model.shrink(request, **options), *errors)
    life.refuses(lambda: life.model.plan_shrinking(request, **options), *errors)
    raise Refused


def _drawn(
    life: Life, layers: list[int], how: str, count: int, seed: int, round_to: int
) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """The request, and the channels that it means."""
    draw, own = random.Random(seed), life.model.layers
    request: dict[str, Any] = {}
    chosen: dict[str, list[int]] = {}
    for path in dict.fromkeys(own[n % len(own)].name for n in layers):
        width = life.mirror.layers[path].width
        if how == "number":
            request[path] = count
            many = count + (width - count) % round_to
            scores = strengths(life.mirror, life.snapshot(), path)
            chosen[path] = scores.argsort(stable=True).tolist()[:many]
            continue
        closed = [c.mirror.layers[path].width for n, c in enumerate(life.closed)
                  if life.recoverable(n) and path in c.mirror.layers]  # fmt: skip
        first = max(closed, default=width // 2) if how == "new" else 0
        among = [*range(first, width)] or [*range(width)]
        if how == "first":
            among = [*range(min(FIRST, width - 1))] or [0]
            count = len(among)
        chosen[path] = draw.sample(among, min(count, len(among), max(width - 1, 1)))
        request[path] = torch.tensor(chosen[path]) if seed % 5 == 0 else chosen[path]
    return request, chosen


def losing(life: Life, gone: Mapping[str, set[int]]) -> list[int]:
    """The closed generations that lose channels, which have the places that they had then."""
    axes = life.mirror.axes()
    return [
        generation
        for generation, closed in enumerate(life.closed)
        if life.recoverable(generation)
        and any(
            min(gone.get(axes.root(path), {layer.width})) < layer.width
            for path, layer in closed.mirror.layers.items()
        )
    ]


class _Kept:
    """All that belongs to parameters before channels go, and to the same ones afterwards."""

    def __init__(self, life: Life, taken: Taken) -> None:
        self.taken = taken
        self.parameters = dict(life.model.named_parameters())
        self.trains = self._flags(lambda key: life.trains[key])
        self.by_hand = self._flags(lambda key: key in life.by_hand)
        untold = {id(p) for p in life.untold}
        self.untold = self._flags(lambda key: key in untold)
        self.averages = [_Average(self, average, life) for average in life.averages]
        self.states: dict[str, dict[str, Tensor]] = {}
        self.groups: dict[str, Tensor] = {}
        if life.trained is not None:
            optimizer = life.trained.optimizer
            self.groups = self._flags(_groups(optimizer).get)
            self.states = _states(optimizer, self.parameters)

    def _flags(self, flag: Any) -> dict[str, Tensor]:
        """A tensor of one number for each parameter."""
        flags = {name: flag(id(p)) for name, p in self.parameters.items()}
        return {
            name: torch.full(p.shape, -1.0 if flags[name] is None else float(flags[name]))
            for name, p in self.parameters.items()
        }

    def now(self, flags: dict[str, Tensor]) -> dict[str, float]:
        """The number of each parameter that is there now."""
        found = {}
        for name, flag in self.taken.tensors(flags).items():
            assert flag.min() == flag.max(), f"{name} is of parts that differ"
            found[name] = flag.flatten()[0].item()
        return found

    def check(self, life: Life, before: Before, edit: Any, *, tell: bool) -> None:
        taken, now = self.taken, life.snapshot()
        own = dict(life.model.named_parameters())
        same("", taken, before.values, now, edit.rewritten)
        self._check_objects(own, before)
        sizes = [sum(p.numel() for p in each.values()) for each in (before.parameters, own)]
        assert sizes[0] - sizes[1] == sum(item.parameters for item in edit.removed), "its number"
        assert {item.name for item in edit.removed} == taken.changed, "other layers than foreseen"
        if taken.absorbed:
            plain = splitgrow.handle(life.model).edits[edit.index - 2].absorbed
            assert {*plain} == taken.absorbed, "others were made plain"
        if life.numeric:
            life.close(life.output(), life.mirror.outputs(now, life.probe()), f"oracle, {edit}")
        trains, by_hand = self.now(self.trains), self.now(self.by_hand)
        untold = {name: flag.max() > 0 for name, flag in taken.tensors(self.untold).items()}
        life.trains.update({id(p): bool(trains[name]) for name, p in own.items()})
        life.by_hand = {id(p) for name, p in own.items() if by_hand[name]}
        life.untold = [p for name, p in own.items() if untold[name]]
        self._check_optimizer(life, own, tell=tell)
        for average in self.averages:
            average.check(life, own, edit.rewritten)
        for earlier in life.earlier:
            earlier.wider = True

    def _check_objects(self, own: Mapping[str, Any], before: Before) -> None:
        """A Parameter that loses nothing is the same object."""
        names = self.taken.names()
        for old, parameter in before.parameters.items():
            path, _, key = old.rpartition(".")
            new = f"{names[path]}.{key}" if path in names else old
            if new in own and own[new].shape == parameter.shape and path in names:
                assert own[new] is parameter, f"{old} is another object"

    def _check_optimizer(self, life: Life, own: Mapping[str, Any], *, tell: bool) -> None:
        trained = life.trained
        if trained is None or not tell:
            life.trained = None
            life.untold = [*own.values()] if trained is not None else life.untold
            return
        groups, wanted = _groups(trained.optimizer), self.now(self.groups)
        for name, parameter in own.items():
            assert groups.get(id(parameter), -1) == wanted[name], f"the group of {name}"
        trained.expected = {id(p): p for name, p in own.items() if wanted[name] >= 0}
        now = _states(trained.optimizer, dict(own))
        for key, values in self.states.items():
            same(f"the optimizer's {key} of ", self.taken, values, now.get(key, {}))


class _Average:
    """An average, as it was before channels went."""

    def __init__(self, kept: _Kept, average: Averaged, life: Life) -> None:
        self.average, self.taken = average, kept.taken
        self.follows = average.follows and not average.behind
        self.values = {n: average.values[id(p)] for n, p in kept.parameters.items()
                       if id(p) in average.values}  # fmt: skip
        copied = life.values(average.copied)
        self.copied = {name: value.detach().clone() for name, value in copied.items()}

    def check(self, life: Life, own: Mapping[str, Any], rewritten: Collection[str]) -> None:
        average = self.average
        now = {n: v.detach() for n, v in life.values(average.copied).items()}
        if self.follows:
            same("the average of ", self.taken, self.copied, now, rewritten)
        for name, value in self.taken.tensors(self.values).items():
            missing = value.isnan()  # what an average that is behind gets when it follows
            if name in rewritten:
                missing = torch.ones_like(missing)
            average.values[id(own[name])] = torch.where(missing, own[name].detach(), value)
        average.keeps(own.values())
        average.behind = not self.follows


def _groups(optimizer: Any) -> dict[int, int]:
    """The number of the group of each parameter, by its id."""
    groups = optimizer.param_groups
    return {id(p): n for n, group in enumerate(groups) for p in group["params"]}


def _states(optimizer: Any, parameters: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The optimizer's tensors, by their name and that of the parameter."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, parameter in parameters.items():
        for key, value in (optimizer.state.get(parameter) or {}).items():
            if value is not None:
                found.setdefault(key, {})[name] = torch.as_tensor(value).clone()
    return found


def same(
    what: str,
    taken: Taken,
    before: Mapping[str, Tensor],
    now: Mapping[str, Tensor],
    but: Collection[str] = (),
) -> None:
    """Tensors are the parts that stay of those from before, bit for bit, but for some."""
    expected = taken.tensors(before)
    plain = {f"{path}.num_batches_tracked" for path in taken.absorbed}
    missing = expected.keys() ^ (now.keys() - plain)
    missing = {name for name in missing if name.rpartition(".")[0] not in taken.absorbed}
    assert not missing, f"{what}{sorted(missing)[0]} is there only before or after"
    for name, value in expected.items():
        if name in now and name not in but:
            given = ~value.isnan()
            assert now[name].shape == value.shape, f"{what}{name} has another shape"
            assert torch.equal(now[name][given], value[given]), f"{what}{name} has other values"
            assert not now[name][~given].any(), f"{what}{name} has values where none were"
