"""What a run of the demo yields, as plain frozen records: no tensors, so that they go into JSON.

`Phase`, `Step`, `Evaluation` and `Growth` are also the events that a run reports as it goes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias

from splitgrow.cli.settings import DemoSettings
from splitgrow.edits import Edit
from splitgrow.reporting import BlockArea


@dataclass(frozen=True)
class Phase:
    """Training begins in a generation and will take that many steps."""

    generation: int
    steps: int


@dataclass(frozen=True)
class Step:
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


Event: TypeAlias = Phase | Step | Evaluation | Growth


@dataclass(frozen=True)
class Measurement:
    """A network at the end of the run; `milliseconds` are for one batch, in eval mode."""

    network: str
    accuracy: float
    parameters: int
    milliseconds: float


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


@dataclass(frozen=True)
class Result:
    """Everything a finished run has to say."""

    dataset: str
    images: tuple[int, int]
    settings: DemoSettings
    steps: tuple[Step, ...]
    evaluations: tuple[Evaluation, ...]
    growths: tuple[Growth, ...]
    recoveries: tuple[Recovery, ...]
    measurements: tuple[Measurement, ...]
    fused_difference: float
    largest_logit: float
    block_map: BlockMap
    seconds: float


def write_json(path: Path, record: Result | Sequence[Event]) -> None:
    """Writes a result, or the events of a run that did not finish, to `path`."""
    document: dict[str, Any] = {"version": 1, "finished": isinstance(record, Result)}
    if isinstance(record, Result):
        document |= {field.name: _plain(getattr(record, field.name)) for field in fields(record)}
    else:
        for kind, name in ((Step, "steps"), (Evaluation, "evaluations"), (Growth, "growths")):
            document[name] = [_plain(event) for event in record if isinstance(event, kind)]
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _plain(value: object) -> object:
    """A record as what JSON knows; an edit has its own way there."""
    if isinstance(value, Edit):
        return json.loads(value.to_json())
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    return value
