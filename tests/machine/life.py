"""The life of one growable model: what a user does with it, and all that has to be known of it."""

from __future__ import annotations

import copy
import gc
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from snapshots import differences, picture
from torch import Tensor, nn

import splitgrow
from machine.averages import Averaged
from machine.nets import inputs, made
from machine.oracle import Mirror, Tensors
from machine.training import Trained

TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
PROBE = 7


@dataclass
class Closed:
    """A closed generation: its form and values, and its outputs as they were.

    Attributes:
        output: None while it is to be recorded anew, such as after a cast.
        mode: How layers ran when it was recorded.
        given_up: Whether channels of it have gone.
    """

    mirror: Mirror
    values: dict[str, Tensor]
    parameters: dict[str, nn.Parameter]
    output: Tensor | None
    mode: str
    given_up: bool = False


@dataclass
class Earlier:
    """A state_dict that was kept, and the parameters of then with their values.

    Attributes:
        era: How often a generation had been closed, or all unfrozen.
        trains: As of the life, like `exact_from`, and `closed`.
        wider: Whether channels have gone since.
    """

    state: dict[str, Any]
    edits: int
    values: list[tuple[nn.Parameter, Tensor]]
    era: int
    mirror: Mirror
    trains: dict[int, bool]
    exact_from: int
    closed: list[Closed]
    wider: bool = False


class Refused(Exception):  # noqa: N818 - no error of the machine's
    """A call was refused for a reason that its step knows."""


class Life:
    """A model and all around it.

    Attributes:
        trains: Whether each parameter should require gradients, by its id.
        by_hand: The ids of parameters that the user froze.
        untold: The new parameters that no optimizer was told of, since the last step.
        told: What happened, for the summary.
    """

    def __init__(self, seed: int, *, space: bool) -> None:
        self.seed, self.space, self.dtype = seed, space, torch.float64
        net = made(seed, space=space)
        self.mirror = Mirror.of(net)
        self.model: Any = splitgrow.growable(net, self.probe())
        self.closed: list[Closed] = []
        self.exact_from = self.era = 0
        self.mode = "auto"
        self.channels_last = False
        self.marked = False  # by torch.compile, with an attribute that the journal knows
        self.trains = {id(p): True for p in self.model.parameters()}
        self.by_hand: set[int] = set()
        self.trained: Trained | None = None
        self.untold: list[nn.Parameter] = []
        self.averages: list[Averaged] = []
        self.earlier: list[Earlier] = []
        self.hooks: dict[str, tuple[Any, list[Any]]] = {}
        self.compiled: Any = None
        self.counts: Counter[str] = Counter()

    # -- looking at it -----------------------------------------------------------------------

    @property
    def numeric(self) -> bool:
        return self.dtype in TOLERANCES

    def recoverable(self, generation: int) -> bool:
        """Whether a closed generation can still be shown."""
        return generation >= self.exact_from and not self.closed[generation].given_up

    def probe(self, width: int | None = None) -> Tensor:
        width = self.mirror.width if width is None else width
        return inputs(width, PROBE, self.dtype, space=self.space)

    def values(self, model: Any = None) -> dict[str, Tensor]:
        model = self.model if model is None else model
        return {**dict(model.named_parameters()), **dict(model.named_buffers())}

    def snapshot(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.values().items()}

    @torch.no_grad()
    def output(self, model: Any = None, width: int | None = None, mode: str = "") -> Tensor:
        """What a model computes in evaluation mode."""
        model = self.model if model is None else model
        training = model.training
        with splitgrow.execution(mode or self.mode):
            made: Tensor = model.eval()(self.probe(width))
        model.train(training)
        return made

    def close(self, one: Tensor, other: Tensor, what: str) -> None:
        assert one.shape == other.shape, f"{what}: {tuple(one.shape)}, not {tuple(other.shape)}"
        if not self.numeric:
            return
        scale = max(other.abs().max().item() if other.numel() else 0.0, 1.0)
        worst = (one - other).abs().max().item() / scale if other.numel() else 0.0
        assert worst <= TOLERANCES[self.dtype], f"{what}: off by {worst:.1e}"

    def same(self, one: Tensor, other: Tensor, what: str) -> None:
        """Bit for bit, unless the two may lie in memory in different ways."""
        if self.channels_last:
            self.close(one, other, what)
        else:
            assert torch.equal(one, other), what

    @property
    def optimizers(self) -> list[Any]:
        return [] if self.trained is None else [self.trained.optimizer]

    @contextmanager
    def told(self, *allowed: str, must: str = "") -> Iterator[list[str]]:
        """Warnings with one of these texts are fine, and one with `must` has to come."""
        texts: list[str] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield texts
        texts += [str(one.message) for one in caught]
        known = (*allowed, *((must,) if must else ()))
        wrong = [text for text in texts if not any(part in text for part in known)]
        assert not wrong, f"warned: {wrong[0]}"
        assert not must or any(must in text for text in texts), f"no warning of {must!r}"

    def refuses(self, call: Callable[[], object], *errors: type[BaseException]) -> None:
        """A call has to fail, and to change nothing."""
        before = picture(self.model, *self.optimizers)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", splitgrow.SplitGrowWarning)
                call()
        except errors:
            assert not (changed := differences(before, picture(self.model, *self.optimizers))), (
                f"a refused call changed: {', '.join(changed[:5])}"
            )
        else:
            raise AssertionError("a mistake was not refused")

    # -- edits -------------------------------------------------------------------------------

    def edit(
        self,
        call: Callable[[Any], Any],
        note: Callable[[Any], set[str] | None],
        allowed: tuple[type[BaseException], ...],
        *,
        tell: bool,
        stir: bool = True,
        after: Callable[[_Before, Any], None] | None = None,
    ) -> Any:
        """Makes an edit, mirrors it, and holds it to the laws of growth, or to others."""
        if tell and self.trained is not None and self.trained.lacks(self.model):
            allowed = (*allowed, splitgrow.OptimizerError)
        before = _Before(self)
        seen = picture(self.model, *self.optimizers)
        try:
            with self.told("splitgrow.follow") as texts, splitgrow.execution(self.mode):
                edit = call(self.optimizers[0] if tell and self.optimizers else None)
        except allowed as error:
            changed = differences(seen, picture(self.model, *self.optimizers))
            assert not changed, f"a refused call changed: {', '.join(changed[:5])}"
            self.counts[f"refused: {type(error).__name__}"] += 1
            raise Refused from error
        if edit is None:
            assert not texts or any(a.behind for a in self.averages), texts[0]
            return None
        self._averages_told(texts)
        if self.model.generation > before.generation:
            self.closes(before)
        changed = note(edit)
        if changed is not None:
            assert changed == {change.name for change in edit.changes}, "other layers than foreseen"
        if after is None:
            self._after(before, edit, tell=tell)
        else:
            after(before, edit)
        if stir:
            self.stir(edit)
        return edit

    def _averages_told(self, texts: list[str]) -> None:
        """Growth warns of averages that nobody told; of those by hand once they have moved."""
        left = [a for a in self.averages if not a.follows]
        assert left or not texts, texts[0]
        assert texts or all(a.kind == "by hand" for a in left), "no warning of an average"

    def closes(self, before: _Before) -> None:
        """A generation was closed, as the model was before."""
        assert self.model.generation == before.generation + 1
        self.era += 1
        self.closed.append(
            Closed(before.mirror, before.values, before.parameters, before.output, self.mode)
        )
        self.mirror.hold(held=True)
        for parameter in before.parameters.values():
            self.trains[id(parameter)] = False

    def _after(self, before: _Before, edit: Any, *, tell: bool) -> None:
        params = {id(p): p for p in self.model.parameters()}
        old = {id(p): p for p in before.parameters.values()}
        gone = old.keys() - params.keys()
        new = [p for key, p in params.items() if key not in old]
        if not edit.joined:
            assert not gone, "a Parameter is another object"
            now = {id(p): n for n, p in self.model.named_parameters()}
            for name, parameter in before.parameters.items():
                assert torch.equal(parameter.detach(), before.values[name]), f"{name} -> {now}"
        assert [id(p) for p in self.model.parameters_of(edit)] == [id(p) for p in new]
        grown = self.output()
        lead = grown[tuple(slice(size) for size in before.output.shape)]
        self.close(lead, before.output, f"outputs after {edit}")
        if self.numeric:
            self.close(grown, self.mirror.outputs(self.snapshot(), self.probe()), f"oracle, {edit}")
        for key in gone:
            self.by_hand.discard(key)
        self.trains.update((id(p), True) for p in new)
        if edit.joined:
            self.trains.update((id(p), p.requires_grad) for p in new)
            self.earlier = []
        self._tell(new, gone, tell=tell)
        for average in self.averages:
            if average.follows:
                self.averages_follow(average, joined=bool(edit.joined))
            else:
                average.behind = True

    def _tell(self, new: list[nn.Parameter], gone: set[int], *, tell: bool) -> None:
        if self.trained is not None and tell:
            self.trained.told(new, gone)
        elif gone:
            self.trained = None
            self.untold = [p for p in self.untold if id(p) not in gone]
        if self.trained is None or not tell:
            self.untold += new
        if self.trained is not None and not tell:
            self.trained.names_hold = False

    def averages_follow(self, average: Averaged, *, joined: bool) -> None:
        """An average has what the model has, and computes what it did."""
        if joined:  # its values were joined by the same rule, which the oracle's wholes show
            for name, p in self.model.named_parameters():
                if id(p) not in average.values:
                    own = dict(average.copied.named_parameters())[name]
                    average.values[id(p)] = own.detach().clone()
        average.catches_up(self.model)

    @torch.no_grad()
    def stir(self, edit: Any) -> None:
        """New parameters get values that matter."""
        generator = torch.Generator().manual_seed(edit.index)
        for parameter in self.model.parameters_of(edit):
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(noise.to(parameter.dtype), alpha=0.2)

    # -- other models in its place -----------------------------------------------------------

    def adopt(self, other: Any, trained: Trained | None) -> None:
        """Goes on with a copy of the model, or with one that was loaded."""
        old, new = dict(self.model.named_parameters()), dict(other.named_parameters())
        assert list(old) == list(new)
        by_id = {id(p): new[name] for name, p in old.items()}
        self.trains = {id(new[name]): self.trains[id(p)] for name, p in old.items()}
        self.by_hand = {id(by_id[key]) for key in self.by_hand if key in by_id}
        for closed in self.closed:
            closed.parameters = {name: by_id.get(id(p), p) for name, p in closed.parameters.items()}
        self.untold = [by_id[id(p)] for p in self.untold if id(p) in by_id]
        self.averages, self.earlier, self.hooks, self.compiled = [], [], {}, None
        self.model, self.trained = other, trained
        if trained is not None:
            trained.expected = {id(p): p for p in trained.listed()}
            self.untold = []

    def drop_averages(self) -> None:
        self.averages = []
        gc.collect()

    def trains_both(self, one: Any, other: Any, seed: int) -> None:
        """One step of each of two runs, which have to end in the same bits."""
        for model, trained in (one, other):
            model.train()
            x = inputs(self.mirror.width, seed, self.dtype, space=self.space)
            trained.optimizer.zero_grad()
            with splitgrow.execution(self.mode):
                loss = model(x).square().mean()
            if loss.requires_grad:
                loss.backward()
            with self.told("no optimizer trains"):
                trained.optimizer.step()
            trained.scheduler.step()
        ours, theirs = self.values(one[0]), self.values(other[0])
        for name, value in ours.items():
            self.same(theirs[name].detach(), value.detach(), f"{name} after another step")

    # -- training ----------------------------------------------------------------------------

    def backward(self, seed: int, *, training: bool) -> dict[str, Tensor]:
        """A backward pass, held to the oracle; the gradients that it should add."""
        x = inputs(self.mirror.width, seed, self.dtype, space=self.space)
        values = {
            name: value.detach().clone().requires_grad_(id(value) in self.trains)
            for name, value in self.values().items()
        }
        ops = Tensors(self.mirror, values, training=training)
        expected = self.mirror.run(x, ops)
        weights = torch.linspace(-1, 1, expected.numel(), dtype=self.dtype).view(expected.shape)
        self.model.train(training)
        with splitgrow.execution(self.mode):
            found = self.model(x)
        self.close(found.detach(), expected.detach(), "outputs in a step")
        now = self.values()
        for name, moved in ops.moved.items():
            self.close(now[name], moved, name)
        for name, value in now.items():
            if "running" in name and name not in ops.moved:
                assert torch.equal(value, values[name].detach()), f"{name} moved"
        if found.requires_grad:
            (found * weights).sum().backward()
        named = {n: values[n] for n, p in self.model.named_parameters() if p.requires_grad}
        gradients = (
            torch.autograd.grad((expected * weights).sum(), [*named.values()], allow_unused=True)
            if named
            else ()
        )
        return {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(named.items(), gradients, strict=True)
        }

    def step(self, seed: int, *, training: bool, passes: int) -> None:
        """A step of training, with gradients of several passes."""
        self.model.zero_grad()
        sums: dict[str, Tensor] = {}
        for n in range(passes):
            for name, gradient in self.backward(seed + n, training=training).items():
                sums[name] = sums[name] + gradient if name in sums else gradient
        for name, parameter in self.model.named_parameters():
            if name in sums:
                grad = parameter.grad
                grad = torch.zeros_like(parameter) if grad is None else grad
                self.close(grad, sums[name], f"the gradient of {name}")
            else:
                assert parameter.grad is None, f"{name} is frozen and has a gradient"
        if self.trained is not None:
            self._optimize(self.trained)
        self.model.zero_grad()

    def _optimize(self, trained: Trained) -> None:
        frozen = [(n, p, p.detach().clone()) for n, p in self.model.named_parameters()
                  if not p.requires_grad]  # fmt: skip
        own = {id(p) for p in trained.listed()}
        alive = {id(p) for p in self.model.parameters()}
        homeless = [p for p in self.untold if p.requires_grad and id(p) not in own]
        may = ("no optimizer trains",) if trained.lacks(self.model) else ()
        with self.told(*may, must="no optimizer trains" if homeless and own & alive else ""):
            trained.optimizer.step()
        trained.scheduler.step()
        self.untold = []
        for name, parameter, value in frozen:
            assert torch.equal(parameter.detach(), value), f"{name} is frozen and has moved"


class _Before:
    """A life before a change."""

    def __init__(self, life: Life) -> None:
        self.mirror = copy.deepcopy(life.mirror)
        self.values = life.snapshot()
        self.parameters = dict(life.model.named_parameters())
        self.output = life.output()
        self.generation = life.model.generation


Before = _Before
