"""Draws many lives, in batches that each have a seed of their own."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from machine.rules import Machine

ROOT = Path(__file__).parents[2]
STEPS = 15


@dataclass(frozen=True)
class Fault:
    """What went wrong in a batch.

    Attributes:
        seed: The batch's.
        kind: The last line of the error.
        story: The steps of the life, and the traceback.
    """

    seed: int
    kind: str
    story: str


def batch(sequences: int, seed: int, *, shrink: bool = False) -> Fault | None:
    """Some lives, until something is wrong with one of them."""
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    drawn = hypothesis.seed(seed)(type("Lives", (Machine,), {}))
    wanted = settings(
        max_examples=sequences,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=phases,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    try:
        run_state_machine_as_test(drawn, settings=wanted)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        notes = "\n".join(getattr(error, "__notes__", []))
        story = "".join(traceback.format_list(_own_frames(error)))
        text = str(error).splitlines() or [""]
        return Fault(seed, f"{type(error).__name__}: {text[0]}", f"{notes}\n{story}")
    return None


def _own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    """The frames of the machine and of the library."""
    parts = getattr(error, "exceptions", ())  # of a group
    if parts:
        return [frame for part in parts for frame in _own_frames(part)]
    frames = traceback.extract_tb(error.__traceback__)
    return [f for f in frames if str(ROOT) in f.filename and "/runs.py" not in f.filename]


def batches(sequences: int, seed: int, size: int) -> Iterator[Fault | None]:
    """The fault of each batch."""
    for number, start in enumerate(range(0, sequences, size)):
        yield batch(min(size, sequences - start), seed + number)
