"""Fixtures: a run like one of the demo, and a small data set."""

from __future__ import annotations

import math

import pytest

from splitgrow.cli.settings import DemoSettings
from splitgrow.demos import datasets
from splitgrow.demos.results import (
    BlockMap,
    Evaluation,
    Growth,
    Measurement,
    Recovery,
    Result,
    TrainingStep,
)
from splitgrow.growth.edit_parts import LayerChange
from splitgrow.growth.edits import Edit
from splitgrow.growth.reporting import BlockArea

_STEPS, _EPOCH = 100, 50  # of one phase


def _edit(index: int) -> Edit:
    old, new = 4 + 2 * index, 6 + 2 * index
    return Edit(
        index=index,
        generation=index,
        closes=index - 1,
        request={"stem.0": 2},
        growth={0: 2},
        changes=(
            LayerChange("stem.0", "Conv2d", (1, 1), (old, new), (), ((old, 2),), ("new",), 18),
            LayerChange(
                "stages.0.conv1",
                "Conv2d",
                (old, new),
                (old, new),
                ((old, 2),),
                ((old, 2),),
                ("helper", "new"),
                9 * (new * new - old * old),
            ),
        ),
    )


@pytest.fixture
def result() -> Result:
    """A run as the demo might have had it, with numbers that are all different."""
    steps = tuple(
        TrainingStep(
            at,
            generation=(at - 1) // _STEPS,
            epoch=1 + (at - 1) % _STEPS // _EPOCH,
            loss=2.3 * math.exp(-at / 80) + 0.1 * math.sin(at),
            accuracy=1 - 0.9 * math.exp(-at / 60),
        )
        for at in range(1, 3 * _STEPS + 1)
    )
    evaluations = tuple(
        Evaluation(at, (at - 1) // _STEPS, 2.3 * math.exp(-at / 90), 1 - 0.9 * math.exp(-at / 70))
        for at in range(_EPOCH, 3 * _STEPS + 1, _EPOCH)
    )
    blocks = (
        BlockArea("original", 0, ((0, 8),), ((0, 8),)),
        BlockArea("helper", 1, ((0, 8),), ((8, 12),)),
        BlockArea("new", 1, ((8, 12),), ((0, 12),)),
        BlockArea("helper", 2, ((0, 12),), ((12, 18),)),
        BlockArea("new", 2, ((12, 18),), ((0, 18),)),
    )
    return Result(
        dataset="spots & <stripes>",
        images=(1437, 360),
        settings=DemoSettings(epochs=2, width=4),
        steps=steps,
        evaluations=evaluations,
        growths=tuple(Growth(_STEPS * at, _edit(at), 1.5e-8 * at) for at in (1, 2)),
        recoveries=(Recovery(0, 0.8125, True, 0.0), Recovery(1, 0.9375, True, 0.0)),
        measurements=(
            Measurement("before growth", 0.8125, 1234, 1.25, macs=100_000),
            Measurement("grown", 0.9625, 5678, 3.5, macs=400_000),
            Measurement("fused", 0.9625, 5555, 0.75, macs=400_000),
        ),
        fused_difference=3.2e-6,
        largest_logit=17.5,
        block_map=BlockMap("stages.0.conv1", blocks),
        seconds=21.4,
    )


@pytest.fixture(scope="module")
def dataset() -> datasets.Dataset:
    return datasets.load_dataset(None, limit=64)
