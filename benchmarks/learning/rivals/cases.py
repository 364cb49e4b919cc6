"""Which kinds of networks each library grows: twice, on a network that has trained a little."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

import splitgrow
from benchmarks.learning.rivals.case_networks import CASES, Case
from benchmarks.learning.rivals.gromo_growth import WAYS, Way, grow
from benchmarks.learning.rivals.gromo_networks import growing_layers, of_gromo
from benchmarks.learning.rivals.records import Outcome
from benchmarks.learning.tasks import Batch, Data, glyphs, loss_of

OURS, THEIRS = ("zero", "pair", "tiny"), ("copy_uniform", "pairing", "TINY", "GradMax")
STEPS, GROWTHS, BATCH, HELD = 80, 2, 64, 1000


def small_pictures(folder: Path) -> Data:
    """The first ten characters of Glyph-100, in grey, 16x16."""
    x, y = glyphs(folder).train
    mine = y < 10
    x, y = F.avg_pool2d(x[mine][:, :1], 2), y[mine]
    held = x[-HELD:], y[-HELD:]
    return Data((x[:-HELD], y[:-HELD]), held, held)


def tried_cases(folder: Path) -> Iterator[Outcome]:
    """Tries each way of both libraries on each case."""
    data = small_pictures(folder)
    for case in CASES:
        for way in OURS:
            yield _tried(case, "splitgrow", way, data)
        for way in THEIRS:
            yield _tried(case, "gromo", way, data)


def _tried(case: Case, library: str, way: str, data: Data) -> Outcome:
    torch.manual_seed(0)
    said = ""
    after: list[float] = []
    moved: list[float] = []
    before: list[float] = []
    batches = data.batches(BATCH, 0)
    try:
        model, grown = (_ours if library == "splitgrow" else _theirs)(case, way)
        _train(model, islice(batches, STEPS))
        for _ in range(GROWTHS):
            score, old = _scored(model, data.validation)
            before.append(score)
            grown([next(batches), next(batches)])
            score, new = _scored(model, data.validation)
            after.append(score)
            moved.append(float((new - old).abs().max() / old.abs().max()))
            _train(model, islice(batches, 5))
    except Exception as error:  # noqa: BLE001 - whatever either library raises is a result
        said = told(error)
    return Outcome(case.name, library, way, tuple(before), tuple(after), tuple(moved), said)


def told(error: BaseException) -> str:
    """The class, the first line and the place of an exception."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    line = str(error).split("\n")[0][:160]
    return f"{type(error).__name__}: {line} ({Path(place.filename).name}:{place.lineno})"


def _train(model: nn.Module, batches: Iterator[Batch]) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for batch in batches:
        optimizer.zero_grad()
        loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@torch.no_grad()
def _scored(model: nn.Module, batch: Batch) -> tuple[float, torch.Tensor]:
    model.eval()
    logits = model(batch[0])
    model.train()
    return 100 * float((logits.argmax(1) == batch[1]).double().mean()), logits


Grown = Callable[[Sequence[Batch]], None]


def _ours(case: Case, way: str) -> tuple[nn.Module, Grown]:
    model: Any = splitgrow.growable(case.plain(), torch.randn(2, 1, 16, 16))

    def grown(samples: Sequence[Batch]) -> None:
        model.expand(
            dict.fromkeys(case.grows, case.units),
            freeze=False,
            initializer=way,
            loss=lambda: loss_of(model, samples[0]),
            check=False,
        )
        model.absorb(check=False)

    return model, grown


def _theirs(case: Case, name: str) -> tuple[nn.Module, Grown]:
    way: Way = copy.deepcopy(WAYS[name])
    if case.gromo is None:
        message = "gromo 0.1.0 has no module for it"
        raise LookupError(message)
    relu = of_gromo("utils.utils").ReLUDerivativeOneAtZero if way.slope else nn.ReLU
    model = case.gromo(relu)

    units = case.theirs or case.units

    def grown(samples: Sequence[Batch]) -> None:
        layers = growing_layers(model)
        widths = [
            (la.hidden_neurons if hasattr(la, "hidden_neurons") else la.in_neurons) + units
            for la in layers
        ]
        grow(model, widths, way, samples)

    return model, grown
