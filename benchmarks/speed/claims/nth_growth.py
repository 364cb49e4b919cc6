"""The thousandth growth of a small network beside the tenth.

All of them join one open generation, so each is a block of its own with parameters of its own. A
growth looks at all of them: its cost is linear in their number, and this measures how small a part
each one has.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from typing import Any

import torch

import splitgrow
from benchmarks.speed.networks import linears
from benchmarks.speed.results import Measurement, Spread, milliseconds
from benchmarks.speed.settings import Claim, Settings

_WIDTHS = (4, 4, 4)
_AROUND = 5
"""How many growths are measured around each number."""


def run(settings: Settings) -> Iterator[Measurement]:
    """One layer grown unit by unit, by itself and with an optimizer that takes in the new units."""
    numbers = (10, 50) if settings.quick else (10, 100, 300, 1000)
    for name, trains in (("MLP", False), ("MLP, with AdamW", True)):
        times = _growths(numbers, settings, trains=trains)
        early = times[numbers[0]]
        for number in numbers[1:]:
            yield Measurement(
                f"{name}, growth {number} over growth {numbers[0]}",
                "ratio",
                Spread.of([late / first for late, first in zip(times[number], early, strict=True)]),
                {
                    f"growth {numbers[0]}": milliseconds(early),
                    f"growth {number}": milliseconds(times[number]),
                },
            )


def _growths(
    numbers: tuple[int, ...], settings: Settings, *, trains: bool
) -> dict[int, list[float]]:
    """Seconds of the processor for some growths around each number, the fastest first."""
    torch.manual_seed(0)
    model: Any = linears(_WIDTHS).to(settings.device)
    splitgrow.growable(model, torch.randn(2, _WIDTHS[0], device=settings.device))
    optimizer = torch.optim.AdamW(model.parameters()) if trains else None
    times: dict[int, list[float]] = {number: [] for number in numbers}
    for turn in range(1, numbers[-1] + _AROUND):
        near = next((n for n in numbers if n <= turn < n + _AROUND), None)
        if near is not None:
            gc.collect()
        started = time.process_time()
        model.expand_layer("0", 1, optimizer=optimizer)
        if near is not None:
            times[near].append(time.process_time() - started)
    return {number: sorted(taken) for number, taken in times.items()}


CLAIM = Claim(
    "nth-growth",
    "The time of a late growth of a small network over that of the tenth, all in one generation",
    run,
)
