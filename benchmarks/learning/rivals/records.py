"""The runs: jobs, results, and the files that they are kept in."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """A run to make.

    Attributes:
        ground: The name of the network.
        library: "splitgrow", "gromo", or "none" for the large network from the start.
        way: How new units start; empty for the large network.
        batch: The size of batches.
        rate: The learning rate.
        seed: The seed.
        state: Whether the optimizer is "kept" at growth, its state "moved" by hand, or "fresh".
        counted: Whether the multiply-adds of growth's own statistics are part of the budget.
        share: The share of the network's budget that it gets.
    """

    ground: str
    library: str
    way: str
    batch: int
    rate: float
    seed: int
    state: str
    counted: bool = True
    share: float = 1.0


@dataclass(frozen=True)
class Run:
    """A run that was made.

    Attributes:
        job: The job.
        steps: The number of training steps.
        seconds: The processor time of all steps and growths, of one thread.
        growing: The part of it that growth took.
        statistics: The multiply-adds of growth's own statistics, in billions.
        validation: The accuracy on the validation data at the end, in percent.
        test: That on the test data.
        jumps: The accuracy on the validation data before and after each growth.
        error: The exception that ended the run, if one did.
    """

    job: Job
    steps: int
    seconds: float
    growing: float
    statistics: float
    validation: float
    test: float
    jumps: tuple[tuple[float, float], ...] = ()
    error: str = ""


@dataclass(frozen=True)
class Timing:
    """The times of a growth.

    Attributes:
        ground: The network.
        library: The library; "none" for a training step of the plain network, or an analysis.
        way: How new units start; "step", or "growable" for the analysis that splitgrow makes once.
        batch: The size of the batch that is trained on, and of that which statistics are from.
        seconds: The processor times of the rounds.
    """

    ground: str
    library: str
    way: str
    batch: int
    seconds: tuple[float, ...]


@dataclass(frozen=True)
class Outcome:
    """One way on one case.

    Attributes:
        case: The case.
        library: The library.
        way: How new units start.
        before: The accuracy in percent before each growth.
        after: That right after each growth that was made.
        moved: The largest change of a logit by each growth, over the largest logit.
        error: The exception that ended it, if one did, with the place it was raised at.
    """

    case: str
    library: str
    way: str
    before: tuple[float, ...]
    after: tuple[float, ...]
    moved: tuple[float, ...]
    error: str = ""


@dataclass(frozen=True)
class Records:
    """All that was measured."""

    runs: list[Run]
    times: list[Timing]
    cases: list[Outcome]


COMPACT = "learning-rivals.jsonl"
"""The file that has all rows of the others."""
_DEFAULTS = {"error": "", "counted": True, "share": 1.0, "jumps": (), "statistics": 0.0}
"""What a compact row leaves out."""
_PARTS = {"runs": ("mlp", "vgg", "resnet"), "times": ("times",), "cases": ("cases",)}


def read(path: Path) -> list[Run]:
    """The runs in a file; none if there is no file."""
    return [_run(fields) for fields in _rows(path)]


def read_all(folder: Path) -> Records:
    """All that is in a folder: in one compact file, or in its parts."""
    if (folder / COMPACT).exists():
        rows = _rows(folder / COMPACT)
        found = {kind: [row["row"] for row in rows if row["kind"] == kind] for kind in _PARTS}
    else:
        found = {
            kind: [row for name in names for row in _rows(folder / f"{name}.jsonl")]
            for kind, names in _PARTS.items()
        }
    return Records(
        [_run(row) for row in found["runs"]],
        [Timing(**{**row, "seconds": tuple(row["seconds"])}) for row in found["times"]],
        [_outcome(row) for row in found["cases"]],
    )


def compact(folder: Path, target: Path) -> None:
    """Writes all that is in a folder into one file, with numbers of few digits."""
    found = read_all(folder)
    rows = [
        json.dumps({"kind": kind, "row": _short(asdict(row))}, separators=(",", ":"))
        for kind in _PARTS
        for row in getattr(found, kind)
    ]
    target.write_text("".join(f"{row}\n" for row in rows))


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if _DEFAULTS.get(k, ...) != v}
        return {key: _short(part) for key, part in kept.items()}
    return [_short(part) for part in value] if isinstance(value, list | tuple) else value


def _run(fields: dict[str, Any]) -> Run:
    jumps = tuple((before, after) for before, after in fields.get("jumps", ()))
    return Run(**{"statistics": 0.0, **fields, "job": Job(**fields["job"]), "jumps": jumps})


def _outcome(fields: dict[str, Any]) -> Outcome:
    lists = {key: tuple(fields[key]) for key in ("before", "after", "moved")}
    return Outcome(**{**fields, **lists})


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, rows: Iterable[Run | Timing | Outcome]) -> None:
    """Adds rows to a file, each as it is made."""
    for row in rows:
        with path.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
