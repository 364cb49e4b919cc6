"""What is checked of one model: analysis, growth of every layer in one edit, and the laws."""

from __future__ import annotations

import re
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn

import splitgrow
from benchmarks.coverage.catalogues import Subject
from benchmarks.coverage.findings import LOOSEST, ROUNDED, Findings, described, tidy, verdict
from benchmarks.coverage.outputs import Answer, ask, check_shapes, difference, identical
from benchmarks.coverage.preparing import (
    Prepared,
    calm,
    computes_in_single,
    defaulting_to,
    prepare,
    rounding_moves,
)
from benchmarks.coverage.roles import roles_of
from benchmarks.coverage.values import ids_of, randomise, soften
from splitgrow.errors import SplitGrowError, TraceError

SINGLE = "runs in single precision only"

Tell = Callable[[str, Findings], None]
"""Told which step comes next, and what is known so far."""


def check(subject: Subject, tell: Tell | None = None) -> Findings:
    """Makes a model, grows all of it, and checks the laws. Whatever goes wrong is in the record.

    Args:
        subject: The model.
        tell: Told at the start of each step.
    """
    found = Findings(subject.name, subject.family, list(subject.tags))
    step = "build"

    def enter(name: str, found: Findings) -> None:
        nonlocal step
        step = name
        if tell is not None:
            tell(name, found)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            enter(step, found)
            prepared = prepare(subject, found)
            with defaulting_to(prepared.dtype or torch.get_default_dtype()):
                _examine(subject, prepared, found, enter)
            if subject.roles and prepared.dtype is not None:
                enter("roles", found)
                _look_at_roles(subject, found)
            found.conclude(*verdict(found))
        except Exception as error:  # noqa: BLE001  what goes wrong is what is looked for
            found.conclude(*_failure(step, error))
    return found


def _failure(step: str, error: Exception) -> tuple[str, str]:
    """The status that an exception comes to."""
    if step == "build":
        return "unbuildable", described(error)
    if step == "analysis" and isinstance(error, SplitGrowError):
        return "refused", described(error)
    return "wrong", f"in {step}: {described(error)}"


def _examine(subject: Subject, prepared: Prepared, found: Findings, enter: Tell) -> None:
    original = type(prepared.model)
    if prepared.dtype == torch.float32:
        _allow_rounding(subject, prepared.model, prepared, found)
    elif prepared.dtype is not None and computes_in_single(prepared):
        found.tolerance = ROUNDED
        found.notes.append("computes in single precision on its way")
    enter("analysis", found)
    with _timed(found, "analysis"):  # by shapes, as the peer's
        splitgrow.growable(prepared.model, prepared.inputs, check=False)
    with _timed(found, "trial"):  # analysed once more, and tried out in values
        model = splitgrow.growable(prepared.model, prepared.inputs)
    layers = splitgrow.handle(model).layers
    for layer in layers:
        counts = found.kinds.setdefault(layer.kind, [0, 0])
        counts[0] += layer.growable
        counts[1] += 1
    found.fixed = dict(Counter(tidy(layer.reason) for layer in layers if not layer.growable))
    old = ids_of(model)
    enter("growth", found)
    with _timed(found, "growth"):
        grow_all(model, found)
    if not found.grown:
        return
    enter("comparison", found)
    now = _compare_with_past(subject, prepared, found, old)
    enter("merge", found)
    with _timed(found, "merge"):
        merged = splitgrow.merge(model)
    _compare_merged(subject, prepared, found, (merged, original), now)
    if prepared.dtype is not None:
        enter("fuse", found)
        _compare_fused(subject, prepared, found, now)


def _look_at_roles(subject: Subject, found: Findings) -> None:
    again = prepare(subject, Findings(subject.name))
    with _timed(found, "roles"), defaulting_to(again.dtype or torch.get_default_dtype()):
        found.roles = roles_of(subject, again, found.tolerance)


def _allow_rounding(
    subject: Subject, model: nn.Module, prepared: Prepared, found: Findings
) -> None:
    """Allows a model of single precision ten times what rounding its own weights does to it."""
    moved = rounding_moves(model, prepared.inputs, detects=subject.detects)
    found.tolerance = min(LOOSEST, max(ROUNDED, found.tolerance, 10 * moved))
    found.notes = [note for note in found.notes if not note.startswith(SINGLE)]
    found.notes.append(f"{SINGLE}: a difference of {found.tolerance:.0e} is allowed")


def _give_new_values(subject: Subject, prepared: Prepared, found: Findings, old: set[int]) -> None:
    """Random values for what is new, small enough that the model does not magnify rounding."""
    randomise(prepared.model, keep=old)
    for times in range(1, 4):
        if prepared.dtype != torch.float64 or calm(prepared.model, prepared.inputs, subject):
            return
        soften(prepared.model, keep=old)
        found.notes = [note for note in found.notes if not note.startswith("new values")]
        found.notes.append(f"new values made smaller, {times} times: it magnifies rounding")


def grow_all(model: nn.Module, found: Findings) -> None:
    """Grows every layer that can, once: in one edit, or in as many as contradictions ask for."""
    handle = splitgrow.handle(model)
    widths = {layer.name: layer.width for layer in handle.layers if layer.growable}
    request: dict[str, int] = {}
    for layer in handle.layers:
        if layer.growable and not request.keys() & set(layer.group):
            request[layer.name] = layer.step
    left_out = _expand(model, request)
    for name, step in left_out.items():
        if _widths(model)[name] == widths[name]:
            handle.expand({name: step})
    now = _widths(model)
    grown = [name for name, width in widths.items() if now[name] > width]
    found.grown = len(grown)
    if left_out:
        found.notes.append(f"more than one edit: {tidy(', '.join(left_out))} contradicted others")
    if len(grown) < len(widths):
        found.notes.append(f"{len(widths) - len(grown)} layers can grow but did not")


def _expand(model: nn.Module, request: dict[str, int]) -> dict[str, int]:
    """Grows layers in one edit, without those that contradict others; returns what these asked."""
    left_out: dict[str, int] = {}
    while request:
        try:
            splitgrow.handle(model).expand(dict(request))
            break
        except ValueError as error:
            named = [name for name in re.findall(r"`([^`]+)`", str(error)) if name in request]
            if not named:
                raise
            left_out |= {name: request.pop(name) for name in named}
    return left_out


def _widths(model: nn.Module) -> dict[str, int]:
    return {layer.name: layer.width for layer in splitgrow.handle(model).layers}


def _compare_with_past(
    subject: Subject, prepared: Prepared, found: Findings, old: set[int]
) -> Answer:
    """Growing changes nothing, new values do, and the old network comes back."""
    model, before = prepared.model, prepared.before
    grown = ask(model, prepared.inputs, detects=subject.detects)
    check_shapes(grown, before, may_grow=True)
    if prepared.dtype is None:
        with splitgrow.handle(model).at(0):
            check_shapes(ask(model, prepared.inputs), before)
        return grown
    found.laws["same"] = difference(grown, before)
    _give_new_values(subject, prepared, found, old)
    now = ask(model, prepared.inputs, detects=subject.detects)
    if not now.is_finite():
        found.notes.append("not finite with values for the new units")
    found.laws["changed"] = _change(now, grown)
    with splitgrow.handle(model).at(0):
        past = ask(model, prepared.inputs, detects=subject.detects)
    found.laws["past"] = identical(past, before)
    return now


def _change(now: Answer, grown: Answer) -> float:
    """How far the outputs moved; where boxes came or went, by all of it."""
    if [t.shape for t in now.found] != [t.shape for t in grown.found]:
        return 1.0
    return difference(now, grown)


def _compare_merged(
    subject: Subject,
    prepared: Prepared,
    found: Findings,
    plain: tuple[nn.Module, type[nn.Module]],
    now: Answer,
) -> None:
    """The merged model answers the same, and nothing of splitgrow is in it."""
    merged, original = plain
    foreign = [m for m in merged.modules() if type(m).__module__.startswith("splitgrow")]
    found.laws["plain"] = type(merged) is original and not foreign
    if prepared.dtype == torch.float32:  # with its new values it may magnify rounding more
        _allow_rounding(subject, merged, prepared, found)
    answer = ask(merged, prepared.inputs, detects=subject.detects)
    check_shapes(answer, now)
    if prepared.dtype is not None:
        found.laws["merge"] = difference(answer, now)


def _compare_fused(subject: Subject, prepared: Prepared, found: Findings, now: Answer) -> None:
    """The fused model answers the same, where there is one."""
    with warnings.catch_warnings(record=True) as caught, _timed(found, "fuse"):
        warnings.simplefilter("always")
        try:
            fused: Any = splitgrow.fuse(prepared.model, check=False)
        except TraceError as error:
            found.fuse = f"no graph: {tidy(str(error))}"
            return
    found.fuse = "ok"
    if not isinstance(fused, fx.GraphModule):
        said = [str(w.message) for w in caught]
        found.fuse = f"no graph: {tidy(said[-1]) if said else 'unknown'}"
    answer = ask(fused, prepared.inputs, detects=subject.detects)
    if subject.detects and not answer.fixed:  # a fused model has no backbone to call
        now = Answer([], now.found)
    found.laws["fuse"] = difference(answer, now)


@contextmanager
def _timed(found: Findings, step: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        found.seconds[step] = round(time.perf_counter() - started, 4)
