"""Growth joins optimizers of every implementation, and costs little in each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

import splitgrow
from benchmarks.speed.networks import MLP, RESNET_18, growable, request
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import compared, training_step

WAYS: Mapping[str, Mapping[str, bool]] = {
    "for loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


def run(settings: Settings) -> Iterator[Measurement]:
    """AdamW in three implementations, on any device."""
    yield from _measured(settings, WAYS)


def run_capturable(settings: Settings) -> Iterator[Measurement]:
    """AdamW whose steps are counted on the device, as CUDA graphs need it."""
    yield from _measured(settings, {"capturable": {"capturable": True}})


def _measured(settings: Settings, ways: Mapping[str, Mapping[str, bool]]) -> Iterator[Measurement]:
    for one in (MLP,) if settings.quick else (RESNET_18, MLP):
        for way, options in ways.items():
            chosen: dict[str, Any] = {"lr": 1e-4, **options}
            model, x = growable(one, settings), one.input(settings)
            optimizer = torch.optim.AdamW(model.parameters(), **chosen)
            training_step(model, x, optimizer=optimizer)()  # so that there is state to keep
            model.expand(request(model, 0.125), freeze=False, optimizer=optimizer, check=False)
            plain = splitgrow.merge(model)
            contestants = {
                "grown": training_step(model, x, optimizer=optimizer),
                "plain": training_step(
                    plain, x, optimizer=torch.optim.AdamW(plain.parameters(), **chosen)
                ),
            }
            yield compared(f"{one.name}, {way}", contestants, settings, "grown", "plain")


CLAIMS = (
    Claim(
        "optimizers",
        "Training step with AdamW in each of torch's implementations, grown with the optimizer by "
        "12.5%, nothing frozen, over that of a plain network of the same widths",
        run,
    ),
    Claim("optimizer-capturable", "The same with `capturable=True`", run_capturable, needs="cuda"),
)
