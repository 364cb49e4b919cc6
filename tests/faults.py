"""Exceptions at every step of an operation: at each line of the library, and at each op of torch.

An operation that is all or nothing leaves everything as it was, wherever it is interrupted; or it
is done, if nothing was left to do but to return. ``python tests/faults.py`` strikes at every line
of every operation, and prints how many there were; the tests strike less often.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import linecache
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from snapshots import _value, differences, picture

import splitgrow
from splitgrow.growth.edits import Edit
from splitgrow.growth.history_lookup import HISTORY
from splitgrow.growth.journal.state_dict import follow_, take_journal
from splitgrow.utils.rollback import all_or_nothing

LIBRARY = str(Path(splitgrow.__file__).parent)
ALWAYS = 2
"""How often a line is always struck, of those that an operation runs many times."""
ERRORS: tuple[type[BaseException], ...] = (MemoryError, KeyboardInterrupt)
"""What is raised, in turn."""


# --- what operations work on ----------------------------------------------------------------------


@dataclass
class Stage:
    """What an operation works on.

    Attributes:
        model: The model.
        act: The operation.
        optimizers: The model's optimizers.
        others: Other objects that it may not disturb: modules, schedulers.
    """

    model: nn.Module
    act: Callable[[], object]
    optimizers: tuple[Optimizer, ...] = ()
    others: tuple[object, ...] = ()

    def picture(self) -> dict[str, object]:
        """All that an interruption must leave as it was."""
        seen = picture(self.model, *self.optimizers)
        for index, other in enumerate(self.others):
            parts = picture(other) if isinstance(other, nn.Module) else _own(other)
            seen.update((f"other {index}: {what}", value) for what, value in parts.items())
        return seen

    def result(self, returned: object) -> list[object]:
        """What can be compared with the result of the same operation on another stage."""
        model = self.model
        seen = [described(returned), described(model), torch.get_rng_state().tolist()]
        known = {id(parameter) for parameter in model.parameters()}
        for optimizer in self.optimizers:
            members = [p for group in optimizer.param_groups for p in group["params"]]
            seen += [[id(p) in known for p in members], described(optimizer.state_dict())]
        history = vars(model).get(HISTORY)
        if history is not None:
            seen += [history.generation, history.exact_from, list(history.modules)]
            seen += [[edit.to_json() for edit in history.edits], sorted(history.frozen)]
            seen.append([(one.name, one.width, one.reason) for one in history_layers(model)])
        return [*seen, *(described(other) for other in self.others)]


def history_layers(model: nn.Module) -> tuple[Any, ...]:
    return splitgrow.handle(model).layers


def _own(other: object) -> dict[str, object]:
    return {name: _value(value) for name, value in vars(other).items()}


def described(value: Any) -> object:
    """Modules by what they print, hold and are set to; tensors as lists; others by their type."""
    if isinstance(value, nn.Module):
        own = (*value.named_parameters(), *value.named_buffers())
        tensors = [(name, t.requires_grad, described(t.grad), t.tolist()) for name, t in own]
        flags = [(part.training, len(part._forward_pre_hooks)) for part in value.modules()]
        return type(value).__qualname__, str(value), tensors, flags
    if isinstance(value, torch.Tensor):
        return value.tolist()
    if isinstance(value, Edit):
        return value.to_json()
    if isinstance(value, dict):
        return [(described(key), described(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, set)):
        return [described(item) for item in value]
    plain = isinstance(value, (int, float, str, bool, type(None)))
    return value if plain else type(value).__name__


class Branch(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.linear(self.norm(x).relu())


class Small(nn.Module):
    """As small as can be, with a norm, a residual block, and a number that follows a width."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 2, 2
        self.stem, self.norm, self.act = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU()
        self.block, self.out = Branch(4), nn.Linear(2, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(self.act(self.norm(self.stem(x))))
        return self.out(x.view(x.size(0), self.heads, self.width).mean(2))


def _inputs() -> torch.Tensor:
    return torch.linspace(-1, 1, 9).view(3, 3)


def small(act: Callable[[Any, Any], object], *, grown: int = 0, made: bool = True) -> Stage:
    """A stage with a trained network, whose optimizers have state, and a scheduler.

    Args:
        act: The operation: given the model and the optimizers.
        grown: How often it has grown.
        made: Whether it is growable.
    """
    torch.manual_seed(0)
    model: Any = Small()
    if made:
        splitgrow.growable(model, _inputs())
    named = dict(model.named_parameters())
    first = {name: named.pop(name) for name in list(named) if name.startswith("stem")}
    optimizers = (
        torch.optim.Adagrad(first.items(), lr=0.1),  # makes a parameter's state when it joins
        torch.optim.SGD(named.values(), lr=0.1, momentum=0.9),
    )
    scheduler = torch.optim.lr_scheduler.StepLR(optimizers[0], 2)

    def train() -> None:
        model(_inputs()).sum().backward()
        for optimizer in optimizers:
            optimizer.step()
        scheduler.step()

    train()
    for _ in range(grown):
        model.expand_layer("stem", 2, optimizer=optimizers)
        train()
    return Stage(model, lambda: act(model, optimizers), optimizers, (scheduler,))


def fading(act: Callable[[Any], object]) -> Stage:
    """A schedule of two fades, one step taken."""
    torch.manual_seed(0)
    fades = [splitgrow.FadeIn(nn.Linear(2, 2), nn.Linear(2, 2)) for _ in range(2)]
    schedule = splitgrow.FadeSchedule(fades, steps=4)
    schedule.step()
    return Stage(nn.ModuleList(fades), lambda: act(schedule), (), (schedule,))


def progressive(act: Callable[[Any, Any], object], *, grown: bool = False) -> Stage:
    """A progressive autoencoder and its optimizer, at first or with a fade that is over."""
    torch.manual_seed(0)
    model = splitgrow.ProgressiveAutoencoder.of_widths([2, 2, 2], image_channels=1, start=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 1, 2, 2)).sum().backward()
    optimizer.step()
    if grown:
        model.grow(optimizer=optimizer, freeze=True)
        for half in model.halves():
            half.fade.alpha = 1.0
    return Stage(model, lambda: act(model, optimizer), (optimizer,))


def inserting(*args: Any, grown: int = 0, **options: Any) -> Callable[[], Stage]:
    """The insertion of a layer."""
    return lambda: small(
        lambda model, optimizers: model.insert_layer(*args, optimizer=optimizers, **options),
        grown=grown,
    )


def inserting_a_module(*args: Any) -> Callable[[], Stage]:
    """The insertion of a module, which may not be disturbed either."""

    def make() -> Stage:
        torch.manual_seed(1)
        module = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
        stage = small(
            lambda model, every: model.insert_layer(*args, module=module, optimizer=every)
        )
        return Stage(stage.model, stage.act, stage.optimizers, (*stage.others, module))

    return make


@functools.cache
def _checkpoint() -> str:
    """A file of a network that has grown twice and has something inserted."""
    stage = small(lambda m, o: m.insert_layer("block", "gate", optimizer=o), grown=2)
    stage.act()
    path = str(Path(tempfile.mkdtemp()) / "run.safetensors")
    model, optimizers, (scheduler,) = stage.model, stage.optimizers, stage.others
    splitgrow.save(model, path, optimizer=optimizers, scheduler=scheduler, extra=[1, torch.ones(2)])
    return path


def loading(*, grown: int = 0, made: bool = False) -> Stage:
    """The loading of a checkpoint into a network that has done none or some of the edits."""
    path = _checkpoint()
    stage = small(lambda m, o: None, grown=grown, made=made)
    optimizers, (scheduler,) = stage.optimizers, stage.others
    stage.act = lambda: splitgrow.load(stage.model, path, optimizer=optimizers, scheduler=scheduler)
    return stage


def loading_a_state_dict() -> Stage:
    """The growth that loading a state_dict brings with it."""
    grown: Any = small(lambda m, o: None, grown=2).model
    state = {name: value.clone() for name, value in grown.state_dict().items()}

    def act(model: Any, _: object) -> None:
        # What torch does then, copying one tensor after the other, is torch's.
        given = dict(state)
        all_or_nothing(
            lambda undo: follow_(model, take_journal(model, given, ""), given, "", undo)
        )()

    return small(act)


def saving() -> Stage:
    """The saving of a checkpoint, which leaves the model alone."""
    path = str(Path(tempfile.gettempdir()) / f"splitgrow-faults-{os.getpid()}.safetensors")
    return small(lambda m, o: splitgrow.save(m, path, optimizer=o), grown=1)


def _shown(model: Any, _: object) -> object:
    with model.at(0):
        return model(_inputs())


def evaluating(stage: Stage) -> Stage:
    """With the model in evaluation mode, in which the norms that growth holds are anyway."""
    stage.model.eval()
    return stage


def _fused(model: Any, generation: int | None = None) -> object:
    return splitgrow.fuse(model, generation=generation)


OPERATIONS: dict[str, Callable[[], Stage]] = {
    "growable": lambda: small(lambda m, _: splitgrow.growable(m, _inputs()), made=False),
    "growable again": lambda: small(lambda m, _: splitgrow.growable(m, _inputs()), grown=1),
    "expand_layer": lambda: small(lambda m, o: m.expand_layer("stem", 2, optimizer=o)),
    "expand": lambda: small(
        lambda m, o: m.expand({"stem": 2, "out": 1}, optimizer=o, freeze=False), grown=2
    ),
    "expand_input": lambda: small(lambda m, o: m.expand_input(1, optimizer=o)),
    "insert identity": inserting("stem", "identity"),
    "insert residual": inserting("stem", "residual", grown=1),
    "insert gate": inserting("stem", "gate"),
    "insert block": inserting("block", "block"),
    "insert module": inserting_a_module("stem", "residual"),
    "insert fade": inserting_a_module("block", "fade"),
    "insert replacement": inserting_a_module("block", "replacement"),
    "plan": lambda: small(lambda m, _: m.plan({"stem": 2})),
    "plan_insertion": lambda: small(lambda m, _: m.plan_insertion("block", "block")),
    "consolidate": lambda: small(lambda m, o: m.consolidate(optimizer=o), grown=2),
    "absorb": lambda: small(lambda m, o: m.absorb(optimizer=o), grown=2),
    "next_generation": lambda: small(lambda m, _: m.next_generation(), grown=1),
    "unfreeze": lambda: small(lambda m, _: m.unfreeze(), grown=1),
    "at": lambda: evaluating(small(_shown, grown=2)),
    "merge": lambda: small(lambda m, _: splitgrow.merge(m), grown=1),
    "fuse": lambda: small(lambda m, _: _fused(m), grown=1),
    "fuse a generation": lambda: small(lambda m, _: _fused(m, 0), grown=1),
    "fade step": lambda: fading(lambda schedule: schedule.step()),
    "fade load": lambda: fading(
        lambda s: s.load_state_dict({"steps": 5, "shape": "cosine", "start": 0.5, "taken": 2})
    ),
    "load": loading,
    "load the rest": lambda: loading(grown=1, made=True),
    "follow a state_dict": loading_a_state_dict,
    "save": saving,
    "progressive grow": lambda: progressive(lambda m, o: m.grow(optimizer=o, freeze=True)),
    "progressive finish": lambda: progressive(lambda m, o: m.finish(optimizer=o), grown=True),
    "progressive thaw": lambda: progressive(lambda m, _: m.thaw(), grown=True),
}
"""What has to be all or nothing."""


# --- where faults strike --------------------------------------------------------------------------


def _is_ours(frame: FrameType) -> bool:
    if frame.f_code.co_filename == contextlib.__file__ and frame.f_back is not None:
        return frame.f_back.f_code.co_filename.startswith((LIBRARY, __file__))
    return frame.f_code.co_filename.startswith(LIBRARY)


class Lines:
    """The lines of the library that run, counted; a fault can strike at one of them.

    Those of contextlib that run between a context manager of the library and its block count too.

    Args:
        at: The number of the line at which a fault strikes, or its file and number there; 0 for
            none.
        error: What is raised.
        then: After how many further lines there is a KeyboardInterrupt, too; 0 for never.
        opcodes: Whether to count the interpreter's single instructions instead.
    """

    def __init__(
        self,
        at: int | tuple[str, int] = 0,
        error: type[BaseException] = MemoryError,
        *,
        then: int = 0,
        opcodes: bool = False,
    ) -> None:
        self.place = at if isinstance(at, tuple) else None
        self.at = at if isinstance(at, int) else 0
        self.error, self.then, self.opcodes = error, then, opcodes
        self.places: list[tuple[str, int]] = []
        self._entered: set[tuple[int, int]] = set()
        self.met: Callable[[], None] = lambda: None

    @property
    def seen(self) -> int:
        """How many there were."""
        return len(self.places)

    def trace(self, frame: FrameType, event: str, _: Any) -> Any:
        """What `sys.settrace` calls."""
        if event == "call":
            if not _is_ours(frame):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = self.opcodes, not self.opcodes
        elif event in {"line", "opcode"}:
            if self._leaves_c(frame):
                return self.trace
            self.places.append((Path(frame.f_code.co_filename).name, frame.f_lineno))
            self.met()
            if self.places[-1] == self.place and not self.at:
                self.at = self.seen
            if self.seen == self.at:
                if not self.then:
                    sys.settrace(None)
                raise self.error("a fault")
            if self.then and self.seen == self.at + self.then:
                sys.settrace(None)
                raise KeyboardInterrupt("a second fault")
        return self.trace

    def _leaves_c(self, frame: FrameType) -> bool:
        """Whether it is about to leave a context that is implemented in C, or to close a file.

        Nothing can strike there but tracing: the interpreter looks for signals when a call returns
        or a function of Python's begins, and C's own way out neither allocates nor is interrupted.
        """
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if line.strip().startswith("os.close("):  # C's own way out, once more
            return not self.opcodes
        if "with torch._C." not in line:
            return False
        key = id(frame), frame.f_lineno
        again = key in self._entered
        (self._entered.discard if again else self._entered.add)(key)
        return again and not self.opcodes

    def __enter__(self) -> Lines:
        self._before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)


class Functions(TorchFunctionMode):
    """Counts the calls of torch's functions; a fault can strike at one of them."""

    def __init__(self, at: int = 0, error: type[BaseException] = MemoryError) -> None:
        super().__init__()
        self.at, self.error, self.seen = at, error, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        if self.seen == self.at:
            raise self.error("a fault")
        return func(*args, **(kwargs or {}))


class Kernels(TorchDispatchMode):
    """Counts the kernels that torch runs, most of which allocate; a fault can strike at one."""

    def __init__(self, at: int = 0, error: type[BaseException] = MemoryError) -> None:
        super().__init__()
        self.at, self.error, self.seen = at, error, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        if self.seen == self.at:
            raise self.error("a fault")
        return func(*args, **(kwargs or {}))


Fault = Callable[..., Any]
"""Makes a context in which a fault strikes: of where, and what."""


@dataclass
class Struck:
    """What an operation left when a fault struck.

    Attributes:
        done: Whether it was done all the same.
        missed: Whether it never came to that place, as what it had seen before took fewer lines.
        wrong: What differs from before, or from an operation that nothing disturbed.
    """

    done: bool = False
    missed: bool = False
    wrong: str = ""


def strike(
    stage: Stage,
    before: dict[str, object],
    done: list[object],
    context: Any,
    *,
    again: Callable[[], bool] = lambda: False,
) -> Struck:
    """Runs an operation into a fault, and judges what it left.

    Args:
        stage: What it works on.
        before: A picture of that.
        done: The result of the same operation on another stage, undisturbed.
        context: Where the fault strikes.
        again: Whether to run the operation once more afterwards.
    """
    raised = False
    try:
        with context:
            stage.act()
    except (MemoryError, KeyboardInterrupt):
        raised = True
    changed = differences(before, stage.picture())
    if not raised and context.seen >= context.at:
        return Struck(wrong="the fault was swallowed")
    if changed or not raised:
        whole = stage.result(None)[1:] == done[1:]
        left = [name for name in changed if name.startswith("global: ")]
        wrong = "" if whole and not left else f"changed: {changed[:5]}"
        return Struck(done=raised, missed=not raised, wrong=wrong)
    if again():
        try:
            if stage.result(stage.act()) != done:
                return Struck(wrong="done again, it gave another result")
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            return Struck(wrong=f"done again: {type(error).__name__}: {error}")
    return Struck()


# --- every line of every operation ----------------------------------------------------------------


@dataclass
class Findings:
    """What striking at many places has shown.

    Attributes:
        places: How often a fault struck.
        lines: How many lines there were.
        done: How often the operation was done all the same.
        first_done: The number of the first such place.
        wrong: What was wrong, and where, with how often.
    """

    places: int
    lines: int
    done: int
    first_done: int
    wrong: Counter[str]


def sweep(make: Callable[[], Stage], *, stride: int, again: int, opcodes: bool) -> Findings:
    """Strikes at every line that an operation runs, each time in a process of its own (on Unix).

    Args:
        make: Makes what the operation works on.
        stride: To strike at every n-th only of the lines that have run `ALWAYS` times before.
        again: To run the operation once more after every n-th fault.
        opcodes: Whether to strike at single instructions of the interpreter instead.
    """
    twin = make()
    done = twin.result(twin.act())
    stage = make()
    before = stage.picture()
    findings, lines = Findings(0, 0, 0, 0, Counter()), Lines(opcodes=opcodes)
    times: Counter[tuple[str, int]] = Counter()
    parent, (reading, writing) = os.getpid(), os.pipe()

    def met() -> None:
        place = lines.places[-1]
        times[place] += 1
        if os.getpid() != parent or (times[place] > ALWAYS and lines.seen % stride):
            return
        findings.places += 1
        python_state = random.getstate()
        child = os.fork()
        if not child:
            random.setstate(python_state)  # which a fork changes
            lines.at, lines.error = lines.seen, ERRORS[findings.places % 2]
            return
        os.waitpid(child, 0)
        word, _, wrong = os.read(reading, 10_000).decode().partition(" ")
        if word == "done":
            findings.done += 1
            findings.first_done = findings.first_done or lines.seen
        if wrong:
            findings.wrong[f"{place[0]}:{place[1]}: {wrong}"] += 1

    lines.met = met
    try:
        found = strike(stage, before, done, lines, again=lambda: findings.places % again == 0)
        text = f"{'done' if found.done else 'back'} {found.wrong}"
    except BaseException as error:  # noqa: BLE001 - a finding in a child
        text = f"back {type(error).__name__}: {error}"
    if os.getpid() != parent:
        os.write(writing, text.encode()[:9_000])
        os._exit(0)
    findings.lines = lines.seen
    os.close(reading)
    os.close(writing)
    return findings


def main() -> None:
    """Strikes at every line of the operations named, or of all, and prints what came of it."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("operations", nargs="*", choices=[[], *OPERATIONS])
    parser.add_argument("--stride", type=int, default=1, help="of lines that run often")
    parser.add_argument("--again", type=int, default=1, help="repeat after every n-th fault")
    parser.add_argument("--opcodes", action="store_true", help="single instructions, not lines")
    given = parser.parse_args()
    torch.set_num_threads(1)
    gc.freeze()
    for name in given.operations or OPERATIONS:
        started = time.perf_counter()
        found = sweep(
            OPERATIONS[name], stride=given.stride, again=given.again, opcodes=given.opcodes
        )
        print(  # noqa: T201
            f"{name}: {found.lines} lines, {found.places} faults, {found.done} of them when it "
            f"was done (from line {found.first_done}), "
            f"{found.wrong.total()} wrong, {time.perf_counter() - started:.0f} s",
            flush=True,
        )
        for wrong, count in found.wrong.most_common(20):
            print(f"    {count}x {wrong}", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
