"""Freezing for real is faster than masking gradients, as CPG and PackNet do."""

from __future__ import annotations

from collections.abc import Iterator

import splitgrow
from benchmarks.speed.networks import grown, networks
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import compared, masked_step, training_step


def run(settings: Settings) -> Iterator[Measurement]:
    """Each network, every layer grown by an eighth."""
    for one in networks(settings):
        x = one.input(settings)
        model = grown(one, settings, 0.125)
        contestants = {
            "grown": training_step(model, x),
            "masks": masked_step(model, splitgrow.merge(model), x),
        }
        yield compared(one.name, contestants, settings, "grown", "masks")


CLAIM = Claim(
    "against-masks",
    "Training step, the past frozen, every layer 12.5% wider, over that of a plain network of the "
    "same widths whose gradients are masked",
    run,
)
