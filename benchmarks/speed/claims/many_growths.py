"""Many growths cost what one does.

Where each growth is closed by `next_generation`, only the units of the last one train. So its
training step is compared with that of a network which grew twice: all at once, and then by that
last step, so that the same units train in both.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import splitgrow
from benchmarks.speed.networks import MLP, VGG, Network, growable, request_units
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import inference, stated, training_step
from benchmarks.speed.timing import paired

_UNITS = {VGG.name: 1, MLP.name: 8}


def run(settings: Settings) -> Iterator[Measurement]:
    """Two networks, grown layer by layer in small steps."""
    count = 8 if settings.quick else 64
    for one in (VGG, MLP):
        units, x = _UNITS[one.name], one.input(settings)
        models = {
            "one growth": _grown(one, settings, [units * count]),
            "two growths": _grown(one, settings, [units * (count - 1), units], close=True),
            "in one generation": _grown(one, settings, [units] * count),
            "consolidated": _grown(one, settings, [units] * count, consolidate=True),
            "each closed": _grown(one, settings, [units] * count, close=True),
        }
        times = paired({name: training_step(m, x) for name, m in models.items()}, settings)
        for name in ("in one generation", "consolidated"):
            yield stated(f"{one.name}, training, {name}", times, name, "one growth")
        yield stated(f"{one.name}, training, each closed", times, "each closed", "two growths")
        del models["two growths"]
        times = paired({name: inference(m, x) for name, m in models.items()}, settings)
        for name in ("in one generation", "consolidated", "each closed"):
            yield stated(f"{one.name}, inference, {name}", times, name, "one growth")


def _grown(
    one: Network,
    settings: Settings,
    units: list[int],
    *,
    close: bool = False,
    consolidate: bool = False,
) -> Any:
    """A network after several growths of all its layers.

    Args:
        one: The network.
        settings: Its size and device.
        units: By how many units all layers grow, growth by growth.
        close: Whether a generation ends before each but the first.
        consolidate: Whether the blocks of the last generation are joined at the end.
    """
    model = growable(one, settings)
    asked = {number: request_units(model, number) for number in units}
    for turn, number in enumerate(units):
        if close and turn:
            splitgrow.handle(model).next_generation()
        splitgrow.handle(model).expand(asked[number])
    if consolidate:
        splitgrow.handle(model).consolidate()
    return model


CLAIM = Claim(
    "many-growths",
    "A network after 64 growths of all its layers over one that grew to the same widths at once",
    run,
)
