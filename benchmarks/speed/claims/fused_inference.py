"""A fused network is as fast as one that never grew, with its norms folded by torch.fx itself."""

from __future__ import annotations

from collections.abc import Iterator

import splitgrow
from benchmarks.speed.networks import grown, networks
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import compared, inference


def run(settings: Settings) -> Iterator[Measurement]:
    """Each network grown by a quarter."""
    # It warns about itself when it is imported.
    from torch.fx.experimental.optimization import fuse  # noqa: PLC0415

    for one in networks(settings):
        x = one.input(settings)
        model = grown(one, settings, 0.25).eval()
        contestants = {
            "fused": inference(splitgrow.fuse(model), x),
            "plain": inference(fuse(splitgrow.merge(model).eval()), x),
        }
        yield compared(one.name, contestants, settings, "fused", "plain")


CLAIM = Claim(
    "fused-inference",
    "Inference of `splitgrow.fuse(grown)` over that of a plain network of the same widths, its "
    "norms folded by torch.fx",
    run,
)
