"""What holds in float32, channels first, holds in channels last and in bf16."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import splitgrow
from benchmarks.speed.networks import MLP, MOBILENET, RESNET_18, Network, grown
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import compared, inference, training_step


def run(settings: Settings, networks: tuple[Network, ...], bf16: bool) -> Iterator[Measurement]:  # noqa: FBT001
    """Training with a frozen past, and inference of the fused network."""
    for one in networks[:1] if settings.quick else networks:
        model, x = _grown(one, settings, 0.125, last=not bf16)
        contestants = {
            "grown": training_step(model, x, bf16=bf16),
            "plain": training_step(splitgrow.merge(model), x, bf16=bf16),
        }
        case = f"{one.name}, training, the past frozen"
        yield compared(case, contestants, settings, "grown", "plain")
        yield _inference(one, settings, bf16=bf16)


def _inference(one: Network, settings: Settings, *, bf16: bool) -> Measurement:
    # It warns about itself when it is imported.
    from torch.fx.experimental.optimization import fuse  # noqa: PLC0415

    model, x = _grown(one, settings, 0.25, last=not bf16)
    model.eval()
    contestants = {
        "fused": inference(splitgrow.fuse(model, check=False), x, bf16=bf16),
        "plain": inference(fuse(splitgrow.merge(model).eval()), x, bf16=bf16),
    }
    return compared(f"{one.name}, fused inference", contestants, settings, "fused", "plain")


def _grown(one: Network, settings: Settings, fraction: float, *, last: bool) -> tuple[Any, Any]:
    model, x = grown(one, settings, fraction), one.input(settings)
    if last:
        model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    return model, x


_SAYS = (
    "a training step, the past frozen, every layer 12.5% wider, and inference of "
    "`splitgrow.fuse(grown)`, 25.0% wider, over those of a plain network of the same widths"
)
CLAIMS = (
    Claim(
        "channels-last",
        f"In channels last: {_SAYS}",
        partial(run, networks=(RESNET_18, MOBILENET), bf16=False),
    ),
    Claim(
        "bf16",
        f"In autocast to bf16: {_SAYS}",
        partial(run, networks=(RESNET_18, MLP), bf16=True),
    ),
)
