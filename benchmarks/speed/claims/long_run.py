"""A network that grows for days: 200 growths and 2,000 steps leave only behind what they add.

Each growth adds two units to one of two layers. Before every tenth a generation is closed, and
every fortieth inserts a residual layer; an AdamW that is handed on trains all the while.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

import splitgrow
from benchmarks.speed.memory import MIB, in_use
from benchmarks.speed.networks import linears
from benchmarks.speed.results import Measurement, Spread
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import inference, stated, training_step
from benchmarks.speed.timing import paired

_GROWTHS, _QUICK_GROWTHS, _STEPS = 200, 40, 10
_WIDTHS, _BATCH = (128, 256, 256, 10), 256
_GROWN = ("0", "2")


@dataclass
class Course:
    """What was seen of a long run, growth by growth.

    Attributes:
        growth: Seconds of each growth.
        step: Seconds of a step after it, the median.
        journal: Bytes of its record, for each layer that it changed.
        memory: MiB that the process used after it.
        tensors: MiB of the tensors that were alive after it.
    """

    growth: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    journal: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    tensors: list[float] = field(default_factory=list)


def run(settings: Settings) -> Iterator[Measurement]:
    """The run as it is, and with the growths of each generation joined."""
    for name, consolidate in (("each its own", False), ("consolidated", True)):
        model, optimizer, x, course = long_run(settings, consolidate=consolidate)
        yield from _left_behind(name, model, optimizer, course)
        plain = splitgrow.merge(model)
        times = paired(
            {"grown": training_step(model, x), "plain": training_step(plain, x)}, settings
        )
        yield stated(f"training step at the end, {name}", times, "grown", "plain")
        times = paired({"grown": inference(model, x), "plain": inference(plain, x)}, settings)
        yield stated(f"inference at the end, {name}", times, "grown", "plain")
        del model, optimizer, plain, times


def long_run(
    settings: Settings, *, consolidate: bool
) -> tuple[Any, torch.optim.Optimizer, Tensor, Course]:
    """Grows and trains a network again and again.

    Args:
        settings: How often, and on what device.
        consolidate: Whether the growths of a generation are joined before it is closed.
    """
    torch.manual_seed(0)
    model: Any = linears(_WIDTHS).to(settings.device)
    x = torch.randn(_BATCH, _WIDTHS[0], device=settings.device)
    splitgrow.growable(model, x)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    course = Course()
    for turn in range(_QUICK_GROWTHS if settings.quick else _GROWTHS):
        if turn and turn % 10 == 0:
            if consolidate:
                model.consolidate(optimizer=optimizer)
            model.next_generation()
        started = time.perf_counter()
        if turn % 40 == 19:
            edit = model.insert_layer("2", "residual", optimizer=optimizer)
        else:
            edit = model.expand_layer(_GROWN[turn % len(_GROWN)], 2, optimizer=optimizer)
        course.growth.append(time.perf_counter() - started)
        course.step.append(_trained(model, optimizer, x))
        gc.collect()
        course.journal.append(len(edit.to_json()) / max(1, len(edit.changes)))
        _give_back_what_is_free()
        course.memory.append(in_use(settings.device))
        course.tensors.append(alive())
    return model, optimizer, x, course


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> float:
    taken = []
    for _ in range(_STEPS):
        started = time.perf_counter()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        taken.append(time.perf_counter() - started)
    return median(taken)


def _give_back_what_is_free() -> None:
    """Has the C library return what nobody uses, so that the rest is what is in use (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def alive() -> float:
    """MiB of the tensors that there are, each storage once."""
    storages = {}
    for item in gc.get_objects():
        if issubclass(type(item), Tensor) and not item.is_meta:
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values()) / MIB


def _left_behind(
    name: str, model: nn.Module, optimizer: torch.optim.Optimizer, course: Course
) -> Iterator[Measurement]:
    """Whether more is there than was added, and whether the last growths are like the first."""
    optimizer.zero_grad()
    gc.collect()
    with torch.no_grad():
        model(torch.zeros(1, _WIDTHS[0], device=next(model.parameters()).device))
    before = alive()
    copied = copy.deepcopy((model, optimizer.state_dict()))
    needed = alive() - before
    half = len(course.memory) // 2
    yield Measurement(
        f"tensors alive over those of a copy, {name}",
        "ratio",
        Spread.of([before / needed]),
        {"alive": f"{before:.2f} MiB", "growths": f"{len(course.growth)}"},
    )
    del copied
    added = course.tensors[-1] - course.tensors[half]
    yield Measurement(
        f"memory that the second half of the run took beyond its tensors, {name}",
        "MiB",
        Spread.of([course.memory[-1] - course.memory[half] - added]),
        {"tensors": f"{added:.2f} MiB"},
    )
    few = len(course.growth) // 10
    of_time = [1000 * seconds for seconds in course.growth]
    for what, values, unit in (
        ("journal entry", course.journal, "bytes"),
        ("growth", of_time, "ms"),
    ):
        early, late = median(values[1 : few + 1]), median(values[-few:])
        yield Measurement(
            f"{what}, last tenth over first, {name}",
            "ratio",
            Spread.of([late / early]),
            {"first": f"{early:.1f} {unit}", "last": f"{late:.1f} {unit}"},
        )


CLAIM = Claim(
    "long-run",
    "200 growths and 2,000 training steps in one process: what is left besides what was added, "
    "and the speed at the end against the plain network of the same widths",
    run,
)
