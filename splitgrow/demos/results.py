"""The results of a demo, as plain frozen records: no tensors, so that they go into JSON.

Those that `EVENTS` lists, and phases, are also the events that a run reports as it goes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias

from splitgrow.checkpoints.asides import write_bytes
from splitgrow.cli.settings import DemoSettings
from splitgrow.demos.arm_results import (
    ArmEnd,
    ArmEvaluation,
    ArmGrowth,
    ArmPhase,
    ArmStep,
    GrowResult,
)
from splitgrow.growth.edits import Edit
from splitgrow.growth.reporting import BlockArea


@dataclass(frozen=True)
class Phase:
    """Training begins in a generation and will take that many steps."""

    generation: int
    steps: int


@dataclass(frozen=True)
class TrainingStep:
    """One training step, numbered over the whole run; `accuracy` is that of its batch."""

    step: int
    generation: int
    epoch: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Evaluation:
    """The whole test set, after `step` training steps."""

    step: int
    generation: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Growth:
    """An edit, after `step` training steps.

    `disturbance` is the largest change of any test logit by the growth itself.
    """

    step: int
    edit: Edit
    disturbance: float


@dataclass(frozen=True)
class Deepening(Growth):
    """An edit of the deeper demo, with the network before and after it.

    `depth` counts the layers with weights on the longest way from the image to the logits, and
    `fused_parameters` those of the network if it were fused there and then: where nothing was added
    to them, fusion takes out all that was inserted.
    """

    loss: tuple[float, float]
    accuracy: tuple[float, float]
    parameters: tuple[int, int]
    fused_parameters: tuple[int, int]
    depth: tuple[int, int]


@dataclass(frozen=True)
class LevelPhase:
    """An autoencoder begins to train at a level, fading it in or on it alone."""

    level: int
    resolution: int
    fading: bool
    steps: int


@dataclass(frozen=True)
class LevelStep:
    """One training step of an autoencoder; `alpha` is the share that its newest level had in it."""

    step: int
    level: int
    epoch: int
    alpha: float
    loss: float


@dataclass(frozen=True)
class LevelEvaluation:
    """The whole test set, after `step` training steps.

    `error` is the mean squared one at the level's resolution, `full_error` that of the same
    reconstructions, enlarged, at the full resolution.
    """

    step: int
    level: int
    alpha: float
    error: float
    full_error: float


@dataclass(frozen=True)
class LevelGrowth:
    """An autoencoder has grown by a level, after `step` training steps.

    `exact` says whether it gives, for the test images at the new size, the doubled reconstructions
    of those at the old, bit for bit.
    """

    step: int
    level: int
    resolution: int
    parameters: int
    exact: bool
    disturbance: float


DemoEvent: TypeAlias = (
    Phase
    | TrainingStep
    | Evaluation
    | Growth
    | LevelPhase
    | LevelStep
    | LevelEvaluation
    | LevelGrowth
    | ArmPhase
    | ArmEnd
    | ArmStep
    | ArmEvaluation
    | ArmGrowth
)
EVENTS: dict[str, tuple[type[DemoEvent], ...]] = {
    "steps": (TrainingStep, LevelStep, ArmStep),
    "evaluations": (Evaluation, LevelEvaluation, ArmEvaluation),
    "growths": (Growth, LevelGrowth, ArmGrowth),
}
"""The kinds of events that are kept, by the name of their list."""


@dataclass(frozen=True)
class Measurement:
    """A network at the end of the run.

    Attributes:
        network: Its name.
        accuracy: The share of test images that it classifies rightly.
        parameters: The number of its parameters.
        milliseconds: The time for one batch, in eval mode.
        macs: The multiply-adds for one image.
    """

    network: str
    accuracy: float
    parameters: int
    milliseconds: float
    macs: int = 0


@dataclass(frozen=True)
class Recovery:
    """A closed generation, run again at the end: are its test logits the same, bit for bit?"""

    generation: int
    accuracy: float
    exact: bool
    largest_difference: float


@dataclass(frozen=True)
class BlockMap:
    """The blocks that a grown layer is made of."""

    layer: str
    blocks: tuple[BlockArea, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The results of every finished run of a classifier that grew."""

    dataset: str
    images: tuple[int, int]
    settings: DemoSettings
    steps: tuple[TrainingStep, ...]
    evaluations: tuple[Evaluation, ...]
    growths: tuple[Growth, ...]
    recoveries: tuple[Recovery, ...]
    measurements: tuple[Measurement, ...]
    fused_difference: float
    largest_logit: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Result(Outcome):
    """Everything a finished run of the demo has to say."""

    block_map: BlockMap


@dataclass(frozen=True)
class ChainLayer:
    """A layer of the final network: its units in each generation, None before it was there.

    `insertion` is the kind of insertion that it came with; empty if it was there from the start.
    """

    name: str
    kind: str
    insertion: str
    units: tuple[int | None, ...]


@dataclass(frozen=True)
class RemovedIdentity:
    """How many modules of a type the final network has, merged and fused."""

    type: str
    merged: int
    fused: int


@dataclass(frozen=True, kw_only=True)
class DeeperResult(Outcome):
    """Everything a finished run of the deeper demo has to say."""

    growths: tuple[Deepening, ...]
    chain: tuple[ChainLayer, ...]
    vanished: tuple[RemovedIdentity, ...]


@dataclass(frozen=True)
class Tiles:
    """Pictures of one size: `pixels` are bytes (count, channels, side, side) in base 64."""

    count: int
    channels: int
    side: int
    pixels: str


@dataclass(frozen=True)
class Level:
    """A level at its end, with some test images at its resolution and their reconstructions."""

    level: int
    resolution: int
    width: int
    parameters: int
    error: float
    full_error: float
    originals: Tiles
    reconstructions: Tiles


@dataclass(frozen=True)
class FadeFusion:
    """The last fade, fused when it was over but the old path still there.

    Numbers of parameters: with both paths, and those of the fused network.
    """

    both_paths: int
    fused: int
    old_path_gone: bool
    largest_difference: float
    largest_pixel: float


@dataclass(frozen=True, kw_only=True)
class ProgressiveResult:
    """Everything a finished run of the progressive demo has to say."""

    dataset: str
    images: tuple[int, int]
    settings: DemoSettings
    steps: tuple[LevelStep, ...]
    evaluations: tuple[LevelEvaluation, ...]
    growths: tuple[LevelGrowth, ...]
    levels: tuple[Level, ...]
    latent: int
    fusion: FadeFusion
    seconds: float


def is_measured(events: Iterable[DemoEvent]) -> bool:
    """Whether at least a step was taken."""
    return any(isinstance(event, EVENTS["steps"]) for event in events)


AnyResult: TypeAlias = Outcome | ProgressiveResult | GrowResult
"""Everything that a finished run has to say."""


def write_json(path: Path, record: AnyResult | Sequence[DemoEvent]) -> None:
    """Writes a result, or the events of a run that did not finish, to `path`.

    Raises:
        CheckpointError: If something else than a file is there, or it cannot be written.
    """
    write_bytes(path, f"{json_of(record)}\n".encode())


def json_of(record: AnyResult | Sequence[DemoEvent]) -> str:
    """A result, or the events of a run that did not finish, as JSON."""
    finished = isinstance(record, AnyResult)
    document: dict[str, Any] = {"version": 1, "finished": finished}
    if isinstance(record, AnyResult):
        document |= {field.name: plain(getattr(record, field.name)) for field in fields(record)}
    else:
        for name, kinds in EVENTS.items():
            document[name] = [plain(event) for event in record if isinstance(event, kinds)]
    return json.dumps(document, indent=1)


def plain(value: object) -> object:
    """A record as plain data of JSON; an edit writes itself."""
    if isinstance(value, Edit):
        return json.loads(value.to_json())
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    return value
