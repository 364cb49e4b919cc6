"""A grown network that is not fused is about as fast as a plain one."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import splitgrow
from benchmarks.speed.networks import grown, networks
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import inference, stated
from benchmarks.speed.timing import paired


def run(settings: Settings) -> Iterator[Measurement]:
    """Each network grown by a quarter, with an open generation and with all of it frozen."""
    for one in networks(settings):
        x = one.input(settings)
        model = grown(one, settings, 0.25)
        closed = copy.deepcopy(model)
        splitgrow.handle(closed).next_generation()
        times = paired(
            {
                "grown": inference(model, x),
                "all frozen": inference(closed, x),
                "plain": inference(splitgrow.merge(model), x),
            },
            settings,
        )
        yield stated(f"{one.name}, open generation", times, "grown", "plain")
        yield stated(f"{one.name}, all frozen", times, "all frozen", "plain")


CLAIM = Claim(
    "grown-inference",
    "Inference of a grown network, not fused, over that of a plain network of the same widths",
    run,
)
