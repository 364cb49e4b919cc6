"""A training step takes less memory where the past is frozen."""

from __future__ import annotations

from collections.abc import Iterator

import splitgrow
from benchmarks.speed.child import in_child
from benchmarks.speed.memory import in_use, peak
from benchmarks.speed.networks import MLP, VGG, grown, network, networks
from benchmarks.speed.results import Measurement, Spread
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import training_step


def run(settings: Settings) -> Iterator[Measurement]:
    """Each network, every layer grown by an eighth, each way in processes of its own."""
    for one in (VGG, MLP) if settings.quick else networks(settings):
        ours: list[float] = []
        theirs: list[float] = []
        for _ in range(settings.few):
            for way, found in ((True, ours), (False, theirs)):
                taken = in_child(of_a_step, settings, name=one.name, frozen_past=way)
                found.append(taken["peak"])
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        beside = {
            "grown": f"{Spread.of(ours).median:.0f} MiB",
            "plain": f"{Spread.of(theirs).median:.0f} MiB",
        }
        yield Measurement(one.name, "ratio", Spread.of(ratios), beside)


def of_a_step(settings: Settings, name: str, frozen_past: bool) -> dict[str, float]:  # noqa: FBT001
    """The most that the model, its optimizer and a step take together."""
    one = network(name)
    before = in_use(settings.device)
    x = one.input(settings)
    model = grown(one, settings, 0.125)
    if not frozen_past:
        model = splitgrow.merge(model)
    step = training_step(model, x)
    for _ in range(2):  # momentum is allocated by the first
        step()
    with peak(settings.device) as found:
        step()
    return {"peak": found.most - before}


CLAIM = Claim(
    "training-memory",
    "Peak memory of model, optimizer and a training step, the past frozen, every layer 12.5% "
    "wider, over that of a plain network of the same widths",
    run,
)
