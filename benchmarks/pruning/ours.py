"""Splitgrow: a quarter of the units of every layer, in one call of `shrink`."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from torch import nn

import splitgrow
from benchmarks.coverage.catalogues import Subject
from benchmarks.coverage.findings import tidy
from benchmarks.coverage.outputs import ask, identical
from benchmarks.coverage.preparing import Prepared, build
from benchmarks.pruning.records import Record
from benchmarks.pruning.steps import SHARE, count, ran, timed, train, widths_of


class OtherError(Exception):
    """What came back from a file is another model."""


def output_layers(model: nn.Module) -> list[str]:
    """The layers on whose units the model's outputs lie, or that nothing reads."""
    handle: Any = splitgrow.handle(model)
    graph = handle._history.graph  # noqa: SLF001
    axes = [axis for axes in graph.outputs for axis in axes]
    groups = {group for axis in axes for group in graph.growing_groups(axis)}
    on_output = {n.name for n in graph.sized() if groups & {*graph.growing_groups(n.outs)}}
    return [
        each.name
        for each in handle.layers
        if each.name in on_output or (each.growable and not each.readers)
    ]


def steps_of(model: nn.Module) -> dict[str, int]:
    """The channels that each layer loses with one unit; `Layer.step` is that of growth."""
    handle: Any = splitgrow.handle(model)
    graph = handle._history.graph  # noqa: SLF001
    return {
        node.name: min(
            graph.multiplicity(node.outs, group) * graph.multiples.get(group, (1, ""))[0]
            for group in groups
        )
        for node in graph.sized()
        if (groups := graph.growing_groups(node.outs))
    }


def request_of(model: nn.Module, stay: list[str]) -> tuple[dict[str, int], int]:
    """A quarter of each layer's units, at least one; and how many layers have only one.

    Args:
        model: The growable model.
        stay: The layers that stay as they are, with all that are tied to them.
    """
    request: dict[str, int] = {}
    narrow, seen = 0, {*stay}
    steps = steps_of(model)
    for layer in splitgrow.handle(model).layers:
        if not layer.growable or layer.name in seen:
            continue
        seen |= {layer.name, *layer.group}
        if {*stay} & {*layer.group}:
            continue
        units = max(
            steps[layer.name], layer.width // SHARE // steps[layer.name] * steps[layer.name]
        )
        if units < layer.width:
            request[layer.name] = units
        else:
            narrow += 1
    return request, narrow


def prune(
    subject: Subject, prepared: Prepared, used: frozenset[str] | None, record: Record
) -> nn.Module:
    """Prunes a model, runs it, trains it, and reads it back.

    Args:
        subject: Where the model comes from.
        prepared: The plain model; it becomes the pruned one.
        used: The parameters that train before pruning.
        record: Is filled in.

    Returns:
        The pruned model.

    Raises:
        Exception: Whatever goes wrong; the record has the step.
    """
    found = record.ours
    widths = widths_of(prepared.model)
    with timed(found, "analysis"):  # by shapes, as the peer's
        splitgrow.growable(prepared.model, prepared.inputs, check=False)
    with timed(found, "trial"):  # analysed once more, and tried out in values
        model = splitgrow.growable(prepared.model, prepared.inputs)
    layers = splitgrow.handle(model).layers
    record.fixed = dict(Counter(tidy(each.reason) for each in layers if not each.growable))
    record.outputs = output_layers(model)
    record.stuck = [each.name for each in layers if not each.growable]
    request, record.narrow = request_of(model, record.outputs)
    if request:
        with timed(found, "pruning"):
            splitgrow.handle(model).shrink(request)
    now = widths_of(model)
    found.pruned = sum(now[name] < width for name, width in widths.items() if name in now)
    found.parameters = count(model)
    found.equal = "yes"  # shrink has compared
    detects = subject.detects
    with timed(found, "forward"):
        ran(model, prepared.inputs, prepared.before, detects=detects)
    with timed(found, "training"):
        train(model, prepared.inputs, used, detects=detects)
    with timed(found, "reload"), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pruned.safetensors"
        splitgrow.save(model, path)
        fresh = build(subject, prepared.dtype)
        splitgrow.load(fresh, path)
        answers = [ask(each.eval(), prepared.inputs, detects=detects) for each in (model, fresh)]
        if not identical(*answers) and answers[0].is_finite():
            raise OtherError("the model that was read back answers otherwise")
    found.conclude("works" if found.pruned else "nothing")
    return model
