"""Trials of a program: growth of all sorts, and everything that must hold afterwards."""

from __future__ import annotations

import copy
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import splitgrow
from wild.programs import Program, draw, surroundings
from wild.runs import (
    EVAL,
    ROUNDING,
    TRAIN,
    Run,
    assert_close,
    cut,
    difference,
    evaluated,
    finite,
    finite_on_the_way,
    gradient_gap,
    grown_run,
    identical,
    run,
)
from wild.values import give_values_, shrink_, stir_
from wild.verdicts import SHORTEST, Refused, Verdict, Wrong, asked, described

Gradients = list[Tensor | None]
Plan = tuple[tuple[str, int], ...]
EXTRAS = ("fuse", "copy", "load", "again", "several")
"""What is done to some programs only."""
WORST = 1e-4
"""A program that answers to the last bit of its input with more than this is no test."""


@dataclass(frozen=True)
class Known:
    """What is known of a program before it grows.

    Attributes:
        program: The program.
        plan: The calls that are compared.
        run: What they give.
        noisy: The modes in which it is random.
        stateful: Whether a call changes what the next one gives.
        tolerance: The difference that rounding may make.
        pulls: The difference that it may make to gradients.
    """

    program: Program
    plan: Plan
    run: Run
    noisy: frozenset[str]
    stateful: bool
    tolerance: float
    pulls: float


def tried(seed: int) -> Verdict:
    """The verdict on the program of a seed."""
    return tried_on(draw(seed))


def tried_on(program: Program) -> Verdict:
    """The verdict on a program."""
    started = time.perf_counter()
    trial = Trial(program)
    with surroundings():
        try:
            verdict, kind, text = trial.verdict()
        except Wrong as wrong:
            verdict, kind, text = "WRONG", wrong.kind, wrong.text
        except Refused as refused:
            verdict, (kind, _, text) = "refused", str(refused).partition(": ")
        except Exception as error:  # noqa: BLE001 - the model's, or one that nobody thought of
            verdict, kind, text = "WRONG", "crash", described(error)
    took = time.perf_counter() - started
    return Verdict(program.seed, verdict, kind, text, trial.layer, took)


class Trial:
    """One program, grown in a way that its seed decides."""

    def __init__(self, program: Program) -> None:
        self.program, self.rng = program, random.Random(f"trial {program.seed}")
        self.code = program.code()
        self.layer, self.told = "", list[warnings.WarningMessage]()
        self.freeze = self.rng.random() < 0.5
        self.extras = {what for what in EXTRAS if self.rng.random() < 0.3}

    def made(self) -> nn.Module:
        return self.program.make(self.code)

    def verdict(self) -> tuple[str, str, str]:
        """The verdict, its kind and its reason."""
        known = self.known()
        model: Any = self.made()
        olds = list(model.parameters())
        training = self.rng.random() < 0.3
        model.train(training)
        try:
            model = asked("growable", lambda: self.growable(model))
            if model.training != training:
                raise Wrong("disturbed", "growable changed the mode")
            layer = self.chosen(model)
            if layer is None:
                self.assert_undisturbed(model, olds, known)
                return "fixed", "layers", "no layer is listed"
            if not layer.growable:
                self.assert_refuses(model, layer)
                self.assert_undisturbed(model, olds, known)
                return "fixed", "reason", layer.reason
            with warnings.catch_warnings(record=True) as self.told:
                warnings.simplefilter("always")
                asked("expand_layer", lambda: self.expand(model, layer))
        except Refused as refused:
            self.assert_undisturbed(model, olds, known)
            if "does not run on example_inputs" in str(refused):
                raise Wrong("refused", str(refused)) from None  # it does
            raise
        self.assert_laws(model, olds, known)
        return "exact", "", ""

    def growable(self, model: nn.Module) -> Any:
        return splitgrow.growable(model, self.program.inputs())

    def expand(self, model: Any, layer: Any) -> Any:
        handle = splitgrow.handle(model)
        request = {layer.name: self.more(layer)}
        if "several" in self.extras:
            can = [one for one in handle.layers if one.growable]
            request.update((one.name, self.more(one)) for one in self.rng.sample(can, 1))
        return handle.expand(request, freeze=self.freeze)

    def more(self, layer: Any) -> int:
        """How many units a layer gains: a step, some, or as many as it has."""
        return self.rng.choice([1, 2, 3, max(layer.width // layer.step, 1)]) * layer.step

    def chosen(self, model: nn.Module) -> Any:
        """The layer that is to grow: one that can, mostly."""
        layers = splitgrow.handle(model).layers
        can = [layer for layer in layers if layer.growable]
        some = can if can and self.rng.random() < 0.9 else layers
        layer = self.rng.choice(some) if some else None
        self.layer = "" if layer is None else f"{layer.name} ({layer.kind})"
        return layer

    # -- before growth

    def known(self) -> Known:
        """Runs the plain program."""
        plain, program = self.made(), self.program
        first = evaluated(plain, program)
        stateful = any(piece.startswith("state") for piece in program.pieces)
        stateful = stateful or not identical(evaluated(plain, program), first)
        draws = "rand" in program.source.partition("def forward")[2]  # which an argmax may hide
        again = evaluated(self.made(), program, 0, 1)
        noisy = {EVAL} if draws or not identical(again, first) else set()
        batch = _works(lambda: evaluated(self.made(), program, 2))
        plan: Plan = ((EVAL, 0), (EVAL, 1), *(((EVAL, 2),) if batch else ()))
        if not self.freeze and self.trains():
            plan = (*plan, (TRAIN, 0), (EVAL, 0))
            if _random_in_training(self.made(), program):
                noisy |= {TRAIN, EVAL} if stateful else {TRAIN}
        plain = self.made()
        found = run(plain, program, list(plain.parameters()), plan)
        gap, pulls = self.conditioning(found, plan)
        tolerance = max(ROUNDING, program.coarse, gap)
        if tolerance > max(WORST, program.coarse) or not all(finite(o) for _, o in found.outputs):
            raise Refused("program: so ill-conditioned that nothing could be compared")
        pulls = max(100 * tolerance, pulls)
        return Known(program, plan, found, frozenset(noisy), stateful, tolerance, pulls)

    def trains(self) -> bool:
        """Whether gradients can be taken."""
        plain = self.made()
        return _works(lambda: run(plain, self.program, list(plain.parameters()), ((TRAIN, 0),)))

    def conditioning(self, found: Run, plan: Plan) -> tuple[float, float]:
        """What the last bits of the parameters change of outputs and gradients, many times over."""
        near = self.made()
        with torch.no_grad():
            for parameter in near.parameters():
                parameter.mul_(1 + 1e-13 * torch.randn_like(parameter))
        other = run(near, self.program, list(near.parameters()), plan)
        pairs = zip(other.outputs, found.outputs, strict=True)
        gap = max(difference(ours, theirs) for (_, ours), (_, theirs) in pairs)
        pulls = gradient_gap(other.gradients, found.gradients)
        return 1e3 * gap, 1e3 * pulls

    # -- what was refused

    def assert_refuses(self, model: Any, layer: Any) -> None:
        """A layer that cannot grow says why, in `layers` and where it is asked to."""
        if len(layer.reason) < SHORTEST:
            raise Wrong("internal", f"a reason that explains nothing: {layer.reason!r}")
        try:
            asked("expand_layer", lambda: splitgrow.handle(model).expand_layer(layer.name, 2))
        except Refused:
            return
        raise Wrong("internal", f"grew a layer that cannot grow: {layer.reason}")

    def assert_undisturbed(self, model: nn.Module, olds: list[nn.Parameter], known: Known) -> None:
        """The model is as it was, to the bit."""
        now = list(model.parameters())
        if len(now) != len(olds) or any(a is not b for a, b in zip(now, olds, strict=True)):
            raise Wrong("disturbed", "other parameters than before")
        found = grown_run(model, self.program, olds, known.plan)
        for (name, ours), (_, theirs) in zip(found.outputs, known.run.outputs, strict=True):
            if not identical(ours, theirs):
                raise Wrong("disturbed", f"{name} differs by {difference(ours, theirs):.3g}")

    # -- what grew

    def assert_laws(self, model: Any, olds: list[nn.Parameter], known: Known) -> None:
        """Everything that must hold of a grown model."""
        give_values_(model)
        found = grown_run(model, self.program, olds, known.plan, known.run)
        self.assert_outputs(model, found, known)
        asked("generation_parameters", lambda: stir_(model))
        self.assert_merged(model, known)
        if "again" in self.extras and not known.stateful and EVAL not in known.noisy:
            self.assert_again(model, known)
        if "copy" in self.extras:
            self.assert_copies(model, known)
        if "load" in self.extras:
            self.assert_loads(model, known)
        if self.freeze:
            self.assert_recovers(model, known)

    def assert_outputs(self, model: Any, found: Run, known: Known) -> None:
        pairs = zip(known.plan, found.outputs, known.run.outputs, strict=True)
        for (mode, which), (name, ours), (_, theirs) in pairs:
            parts = cut(ours, theirs)
            if mode in known.noisy:
                if not finite(parts):
                    raise Wrong("nan", name)
                continue
            kind = "outputs" if mode == EVAL else "outputs in training"
            if not finite(parts):
                self.blame_the_program(model, which)
            assert_close(kind, parts, theirs, known.tolerance)
        ways = {way for edit in splitgrow.handle(model).edits for way in edit.ways.values()}
        if known.noisy or not ways <= {"zero"}:  # copies and means take a part of the gradient
            return
        self.assert_gradients(found.gradients, known)

    def blame_the_program(self, model: Any, which: int) -> None:
        """Zero times infinity or NaN is no number: whether the program's ops make such values.

        Raises:
            Refused: If they do, of inputs that growth was not shown or of what new units give.
        """
        if which and not finite_on_the_way(self.made(), self.program, which):
            raise Refused("program: infinite on its way, on inputs that growth was not shown")
        for _ in range(3):
            shrink_(model)
            if finite(evaluated(model, self.program, which)):
                raise Refused("program: its ops are not defined for what new units give")

    def assert_gradients(self, found: Gradients, known: Known) -> None:
        """Those of old parameters are as before, measured by the largest."""
        gap = gradient_gap(found, known.run.gradients)
        if not gap <= known.pulls:
            raise Wrong("gradients", f"differ by {gap:.3g} of the largest")

    def assert_merged(self, model: Any, known: Known) -> None:
        """Merge and fuse compute the same."""
        ways: dict[str, Callable[[], Any]] = {"merge": lambda: splitgrow.merge(model)}
        if "fuse" in self.extras:
            ways["fuse"] = lambda: splitgrow.fuse(model)
        made = {}
        for what, way in ways.items():
            try:
                made[what] = asked(what, way)
            except Refused as refused:
                if "report" in str(refused):
                    raise Wrong(what, str(refused)) from refused
        if not made:
            return
        expected = _ran(model, known)
        for what, other in made.items():
            found = _ran(other, known, what)
            for ours, theirs in zip(found, expected, strict=True):
                assert_close(what, ours, theirs, max(known.tolerance, ROUNDING) * 10)

    def assert_again(self, model: Any, known: Known) -> None:
        """A second edit: another growth, or something inserted."""
        before = evaluated(model, self.program)
        if not finite(before):
            return
        layers = splitgrow.handle(model).layers
        layer = self.rng.choice([layer for layer in layers if layer.growable])
        kind = self.rng.choice(["width", "width", "identity", "residual", "gate"])
        try:
            if kind == "width":
                asked("a second growth", lambda: self.expand(model, layer))
            else:
                insert = splitgrow.handle(model).insert_layer
                asked("insert_layer", lambda: insert(layer.name, kind, freeze=self.freeze))
        except Refused:
            after = grown_run(model, self.program, [], ((EVAL, 0),)).outputs[0][1]
            if not identical(after, before):
                raise Wrong("disturbed", f"a refused {kind} changed the outputs") from None
            return
        after = grown_run(model, self.program, [], ((EVAL, 0),)).outputs[0][1]
        assert_close(f"second edit ({kind})", cut(after, before), before, 100 * known.tolerance)

    def assert_copies(self, model: Any, known: Known) -> None:
        """A deep copy computes the same."""
        plain = self.made()
        if not _works(lambda: copy.deepcopy(plain)):
            return
        other = asked("deepcopy", lambda: copy.deepcopy(model))
        ours, theirs = _ran(other, known, "copy"), _ran(model, known)
        if not all(identical(a, b) or not finite(b) for a, b in zip(ours, theirs, strict=True)):
            raise Wrong("copy", f"differs by {max(map(difference, ours, theirs)):.3g}")

    def assert_loads(self, model: Any, known: Known) -> None:
        """A fresh model that loads the state_dict computes the same, if a plain one's does."""
        first, second = self.made(), self.made()
        if not _works(lambda: run(first, self.program, [], known.plan)):
            return
        if not _works(lambda: second.load_state_dict(first.state_dict())):
            return
        if "self.count +=" in self.program.source or "self.cache" in self.program.source:
            return  # what is kept in attributes is in no state_dict
        if not identical(evaluated(second, self.program), evaluated(first, self.program)):
            return
        state = copy.deepcopy(model.state_dict())
        try:
            other = asked("growable", lambda: self.growable(self.made()))
            asked("load_state_dict", lambda: other.load_state_dict(state))
        except Refused as refused:
            raise Wrong("state_dict", str(refused)) from refused
        ours, theirs = _ran(other, known, "state_dict"), _ran(model, known)
        if not all(identical(a, b) or not finite(b) for a, b in zip(ours, theirs, strict=True)):
            raise Wrong("state_dict", f"differs by {max(map(difference, ours, theirs)):.3g}")

    def assert_recovers(self, model: Any, known: Known) -> None:
        """Generation 0 is as it was, to the bit, whatever was done since."""
        model.train()
        _works(lambda: model(*self.program.inputs(1)))
        model.eval()
        handle = splitgrow.handle(model)

        def at() -> list[Tensor]:
            with handle.at(0):
                return evaluated(model, self.program)

        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                ours = asked("at(0)", at)
            except Refused:
                return
        theirs = known.run.outputs[0][1]
        if not identical(ours, theirs) and not about_the_past(self.told + told):
            raise Wrong("at(0)", f"differs by {difference(ours, theirs):.3g}")


def _ran(model: nn.Module, known: Known, what: str = "") -> list[list[Tensor]]:
    try:
        return [evaluated(model, known.program, which) for which in (0, 1)]
    except Exception as error:
        raise Wrong("crash", f"{what} {described(error)}") from error


def about_the_past(told: list[warnings.WarningMessage]) -> bool:
    """Whether a warning says that a closed generation cannot be held."""
    return any("generation" in str(one.message) or "at(" in str(one.message) for one in told)


def _works(call: Callable[[], object]) -> bool:
    try:
        call()
    except Exception:  # noqa: BLE001 - the program's own
        return False
    return True


def _random_in_training(model: nn.Module, program: Program) -> bool:
    state = copy.deepcopy(model.state_dict())
    found = []
    for seed in (0, 1):
        model.load_state_dict(state)
        torch.default_generator.manual_seed(seed)
        with torch.no_grad():
            found.append([t.clone() for t in _tensors(model.train()(*program.inputs()))])
    return not identical(*found)


def _tensors(outputs: Any) -> list[Tensor]:
    return [t for t in torch.utils._pytree.tree_leaves(outputs) if isinstance(t, Tensor)]
