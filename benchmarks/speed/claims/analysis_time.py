"""Analysing a model is faster than with torch-pruning, which looks for much the same."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import version

import torch

import splitgrow
from benchmarks.speed.results import Measurement, milliseconds
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.timing import ratio, seconds
from benchmarks.vision import torchvision


def run(settings: Settings) -> Iterator[Measurement]:
    """ResNet-152 on inputs of two sizes."""
    tp = import_module("torch_pruning")
    pristine = torchvision().models.resnet152().to(settings.device).eval()
    peer = f"torch-pruning {version('torch-pruning')}"
    for size in (64,) if settings.quick else (224, 64):
        x = torch.randn(1, 3, size, size, device=settings.device)
        times: dict[str, list[float]] = {"growable": [], peer: []}
        for turn in range(1 + -(-settings.rounds // (5 if settings.quick else 2))):
            gc.collect()
            ours, theirs = copy.deepcopy(pristine), copy.deepcopy(pristine)
            calls = {
                "growable": lambda: splitgrow.growable(ours, x, check=False),  # noqa: B023
                peer: lambda: tp.DependencyGraph().build_dependency(theirs, x),  # noqa: B023
            }
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the peer's
                taken = {each: seconds(call, settings.device) for each, call in calls.items()}
            for each, second in taken.items():
                if turn:  # the first imports and compiles
                    times[each].append(second)
        beside = {each: milliseconds(found) for each, found in times.items()}
        yield Measurement(
            f"ResNet-152, {size} by {size}", "ratio", ratio(times, "growable", peer), beside
        )


CLAIM = Claim(
    "analysis-time",
    "`splitgrow.growable(check=False)` over torch-pruning's `DependencyGraph.build_dependency`, "
    "which looks at no values either; same model and input",
    run,
)
