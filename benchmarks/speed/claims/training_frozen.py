"""A network whose past is frozen trains faster than a plain one of the same widths."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from benchmarks.speed.networks import networks
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import against_plain


def run(settings: Settings, fraction: float) -> Iterator[Measurement]:
    """Each network, every layer grown by the same fraction."""
    for one in networks(settings):
        yield against_plain(one, settings, fraction)


def _claim(name: str, fraction: float) -> Claim:
    says = (
        f"Training step, the past frozen, every layer {fraction:.1%} wider, over the full step of "
        f"a plain network of the same widths"
    )
    return Claim(name, says, partial(run, fraction=fraction))


CLAIMS = (_claim("training-frozen-12", 0.125), _claim("training-frozen-25", 0.25))
