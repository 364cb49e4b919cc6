"""Making a model and its inputs: in real values where that is affordable, else as shapes only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.coverage.catalogues import Sample, Subject
from benchmarks.coverage.findings import Findings, described
from benchmarks.coverage.outputs import Answer, PrecisionWatch, ask, difference, shapes_of
from benchmarks.coverage.values import randomise, randomise_little

CALM = 1e-12
"""How far the outputs of a model may move when its weights are changed in their last place.

Some networks (sharp attention, products of features) magnify rounding until nothing can be
compared; they are given milder values.
"""
SMALL = 30_000_000
"""Models with fewer parameters are checked in real values."""
REAL_AT_MOST = 120_000_000
"""Models that do not run as shapes only are checked in real values up to this size."""


@dataclass
class Prepared:
    """A plain model, ready to be grown.

    Attributes:
        model: The model, in evaluation mode.
        inputs: The positional arguments of a call.
        before: What it answers.
        dtype: Its floating dtype; None if it has shapes only.
        sample: What made the inputs.
    """

    model: nn.Module
    inputs: tuple[Any, ...]
    before: Answer
    dtype: torch.dtype | None
    sample: Sample


class Noted(Protocol):
    """A record that notes can be added to."""

    notes: list[str]


@contextmanager
def defaulting_to(dtype: torch.dtype) -> Iterator[None]:
    """New tensors have this dtype inside a ``with`` block."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(default)


def count_parameters(subject: Subject) -> int | None:
    """How many parameters a model has; None if it cannot be made."""
    try:
        model = build(subject, None)
    except Exception:  # noqa: BLE001  preparing it will tell
        return None
    return sum(parameter.numel() for parameter in model.parameters())


def prepare(subject: Subject, found: Findings) -> Prepared:
    """The model, its inputs, and what it answers before it grows. Fills in the record.

    Raises:
        Exception: Whatever the plain model raises where it does not run.
    """
    size = count_parameters(subject)
    prepared = None
    if size is not None and size >= SMALL:
        try:
            prepared = _as_shapes(subject)
        except Exception as error:
            if size >= REAL_AT_MOST:
                raise
            found.notes.append(f"does not run as shapes only: {described(error)}")
    prepared = prepared or prepare_values(subject, found)
    found.parameters = sum(parameter.numel() for parameter in prepared.model.parameters())
    found.values = "shapes only" if prepared.dtype is None else str(prepared.dtype).split(".")[1]
    found.inputs = shapes_of(prepared.inputs)
    layers = (nn.modules.conv._ConvNd, nn.Linear)  # noqa: SLF001
    found.modules = sum(isinstance(module, layers) for module in prepared.model.modules())
    return prepared


def build(subject: Subject, dtype: torch.dtype | None) -> nn.Module:
    """A fresh model in evaluation mode: real values of a dtype, or shapes only."""
    torch.manual_seed(0)
    if dtype is None:
        try:
            with torch.device("meta"):
                return subject.build().eval()
        except Exception:  # noqa: BLE001  some compute with tensors while they are made
            return subject.build().eval().to("meta")
    with defaulting_to(dtype):
        return subject.build().eval().to(dtype)


def feed(sample: Sample, dtype: torch.dtype | None) -> tuple[Any, ...]:
    """Inputs for such a model."""
    torch.manual_seed(1)
    if dtype is None:
        with torch.device("meta"):
            return sample()

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    inputs: tuple[Any, ...] = pytree.tree_map_only(Tensor, cast, sample())
    return inputs


def _as_shapes(subject: Subject) -> Prepared:
    model = build(subject, None)
    return _fed(subject, model, None)


def prepare_values(subject: Subject, found: Noted) -> Prepared:
    """In double precision; where the model does not run in that, in single.

    Raises:
        Exception: Whatever the plain model raises where it does not run.
    """
    try:
        return prepare_in(subject, found, torch.float64)
    except Exception as error:  # noqa: BLE001  then in its usual dtype
        in_double = described(error)
    prepared = prepare_in(subject, found, torch.float32)
    found.notes.append(f"does not run in double precision: {in_double}")
    return prepared


def prepare_in(subject: Subject, found: Noted, dtype: torch.dtype) -> Prepared:
    """With random values, milder ones if need be, under which all outputs are numbers."""
    for give_values in (randomise, randomise_little):
        model = build(subject, dtype)
        give_values(model)
        with defaulting_to(dtype):
            prepared = _fed(subject, model, dtype)
        if not prepared.before.is_finite():
            continue
        if give_values is randomise_little:
            found.notes.append("only zeros and statistics made random: else it magnifies rounding")
            return prepared
        if dtype != torch.float64 or calm(model, prepared.inputs, subject):
            return prepared
    raise ArithmeticError("the outputs of the plain model are not finite")


def _fed(subject: Subject, model: nn.Module, dtype: torch.dtype | None) -> Prepared:
    """With the first of its samples that it takes, in training mode too if there is such a one."""
    problem: Exception | None = None
    for sample in _trainable_first(subject):
        inputs = feed(sample, dtype)
        try:
            before = ask(model, inputs, detects=subject.detects)
        except Exception as error:  # noqa: BLE001  the next one may do
            problem = problem or error
            continue
        return Prepared(model, inputs, before, dtype, sample)
    assert problem is not None
    raise problem


def _trainable_first(subject: Subject) -> list[Sample]:
    """The samples; the first that also runs in training mode leads, since analysis looks at both.

    Some models have further heads in training, which need larger images. Tried without values, so
    that no statistics move.
    """
    samples = list(subject.samples)
    if len(samples) > 1:
        model = build(subject, None).train()
        for sample in subject.samples:
            try:
                ask(model, feed(sample, None))
            except Exception:  # noqa: BLE001  the next one may do
                continue
            samples.remove(sample)
            return [sample, *samples]
    return samples


def calm(model: nn.Module, inputs: tuple[Any, ...], subject: Subject) -> bool:
    """Whether rounding of the weights stays rounding in the outputs."""
    return rounding_moves(model, inputs, detects=subject.detects) <= CALM


def computes_in_single(prepared: Prepared) -> bool:
    """Whether a model in double precision computes in less on its way."""
    with PrecisionWatch() as watch, torch.no_grad():
        prepared.model(*prepared.inputs)
    return watch.single


@torch.no_grad()
def rounding_moves(model: nn.Module, inputs: tuple[Any, ...], *, detects: bool = False) -> float:
    """How far the outputs move, relative to the largest, when every weight is rounded otherwise."""
    parameters = [p for p in model.parameters() if p.is_floating_point()]
    before = ask(model, inputs, detects=detects)
    values = [parameter.clone() for parameter in parameters]
    for parameter in parameters:
        signs = torch.randint_like(parameter, 0, 2) * 2 - 1
        parameter.mul_(1 + signs * torch.finfo(parameter.dtype).eps)
    moved = ask(model, inputs, detects=detects)
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)
    return difference(moved, before)
