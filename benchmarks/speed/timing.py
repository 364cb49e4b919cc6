"""Timing contestants against each other, in turn, so that what else the machine does hits all."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping

import torch

from benchmarks.speed.results import Spread
from benchmarks.speed.settings import Settings

_LEAST = 0.1
"""Seconds that a sample takes at least: shorter ones are mostly the clock's and the scheduler's."""
_LEAST_QUICK = 0.01
_WARM_UP = 3  # calls: the first allocate, the second puts grown layers together


def seconds(call: Callable[[], object], device: str, repeats: int = 1) -> float:
    """How long one call takes, as the mean of several in a row.

    Garbage is not collected meanwhile, so that nobody pays for what others left.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        synchronise(device)
        started = time.perf_counter()
        for _ in range(repeats):
            call()
        synchronise(device)
        return (time.perf_counter() - started) / repeats
    finally:
        if collecting:
            gc.enable()


def synchronise(device: str) -> None:
    """Waits until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def paired(
    contestants: Mapping[str, Callable[[], object]], settings: Settings
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round.

    In every round each has one turn. The order rotates from round to round, as what runs first
    finds other caches, and another clock speed, than what runs last.

    Args:
        contestants: What to time, by name.
        settings: The number of rounds, and the device.

    Returns:
        For each name a list with one time for each round.
    """
    names = list(contestants)
    for name in names:
        for _ in range(_WARM_UP):
            contestants[name]()
    fastest = min(seconds(contestants[name], settings.device) for name in names)
    least = _LEAST_QUICK if settings.quick else _LEAST
    repeats = max(1, math.ceil(least / fastest))
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(settings.rounds):
        gc.collect()
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(seconds(contestants[name], settings.device, repeats))
    return times


def ratio(times: Mapping[str, list[float]], name: str, over: str) -> Spread:
    """One contestant's times over another's, round by round."""
    return Spread.of([a / b for a, b in zip(times[name], times[over], strict=True)])
