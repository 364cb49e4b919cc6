"""A grown network in which everything trains is about as fast as a plain one."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.speed.networks import networks
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import against_plain


def run(settings: Settings) -> Iterator[Measurement]:
    """Each network, every layer grown by a quarter."""
    for one in networks(settings):
        yield against_plain(one, settings, 0.25, freeze=False)


CLAIM = Claim(
    "training-free",
    "Training step where nothing is frozen (`freeze=False`), every layer 25.0% wider, over that of "
    "a plain network of the same widths",
    run,
)
