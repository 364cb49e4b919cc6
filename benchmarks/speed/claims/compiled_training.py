"""A compiled network whose past is frozen trains faster than a compiled plain one of its widths."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import splitgrow
from benchmarks.speed.networks import MLP, RESNET_18, grown
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import compared, training_step

FRACTION = 0.25


def run(settings: Settings) -> Iterator[Measurement]:
    """Every layer grown once; each network one graph. Making the code is not timed."""
    for one in (MLP,) if settings.quick else (MLP, RESNET_18):
        x = one.input(settings)
        model = grown(one, settings, FRACTION)
        contestants = {
            "compiled grown": training_step(_compiled(model), x),
            "compiled plain": training_step(_compiled(splitgrow.merge(model)), x),
        }
        yield compared(one.name, contestants, settings, *contestants)


def _compiled(model: nn.Module) -> Any:
    return torch.compile(model, fullgraph=True)


CLAIM = Claim(
    "compiled-training-frozen",
    f"Training step under torch.compile, the past frozen, every layer {FRACTION:.1%} wider, over "
    f"the compiled full step of a plain network of the same widths",
    run,
)
