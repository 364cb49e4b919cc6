"""What is found of one model, kept as a line of JSON each."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.coverage.findings import LONG, tidy
from benchmarks.coverage.results import machine

FOLDER = Path(__file__).parents[1] / "results" / "pruning"

OUTCOMES = {
    "works": "pruned, ran, trained, and came back from a file",
    "nothing": "ran, but no layer got narrower",
    "other": "ran, but computed another function than the model without those channels",
    "fails": "an error in one of the steps",
    "timeout": "not finished in time",
    "not run": "the model itself does not run here",
}


@dataclass
class Outcome:
    """What one of the two made of a model.

    Attributes:
        status: One of `OUTCOMES`.
        reason: Why it does not work.
        step: The step that it was in.
        help: What had to be told or changed by hand.
        pruned: How many layers got narrower.
        parameters: How many parameters are left.
        equal: Whether the outputs are those of the model without the channels that went: "yes",
            "no", or why that was not compared.
        seconds: How long each step took.
    """

    status: str = ""
    reason: str = ""
    step: str = ""
    help: str = ""
    pruned: int = 0
    parameters: int = 0
    equal: str = ""
    seconds: dict[str, float] = field(default_factory=dict)

    def conclude(self, status: str, reason: str = "") -> None:
        """Sets the status, and the reason as far as it can be read elsewhere."""
        self.status, self.reason = status, tidy(reason, LONG)


@dataclass
class Record:
    """One model.

    Attributes:
        name: The model.
        family: The module that defines it.
        parameters: How many it has.
        layers: How many convolutions and linear layers it has.
        values: The dtype.
        inputs: The shapes of the tensors that it was fed.
        outputs: The layers that make the model's outputs, which stay as they are.
        stuck: The layers whose width splitgrow cannot change.
        narrow: How many layers are too narrow to lose a unit.
        fixed: How many layers cannot shrink for each reason.
        notes: What else there is to know.
        ours: What splitgrow made of it.
        peer: What torch-pruning made of it.
    """

    name: str
    family: str = ""
    parameters: int = 0
    layers: int = 0
    values: str = ""
    inputs: list[list[int]] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    narrow: int = 0
    fixed: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    ours: Outcome = field(default_factory=Outcome)
    peer: Outcome = field(default_factory=Outcome)

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON data."""
        return asdict(self)


def path_of(library: str, folder: Path = FOLDER) -> Path:
    """The file of a library's models."""
    return folder / f"coverage-{library}.jsonl"


def read(path: Path) -> dict[str, dict[str, Any]]:
    """The records by name; the last one of a name counts."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {record["name"]: record for record in map(json.loads, lines)}


def add(path: Path, record: dict[str, Any]) -> None:
    """Adds a record to a file, with where and when it was made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({**record, "machine": machine()}) + "\n")


def tidied(path: Path) -> None:
    """Writes each model once, by name."""
    records = read(path)
    write(path, (records[name] for name in sorted(records)))


def write(path: Path, records: Iterable[dict[str, Any]]) -> None:
    """Writes a file of records in one step."""
    draft = path.with_suffix(".part")
    draft.write_text("".join(json.dumps(record) + "\n" for record in records))
    draft.replace(path)


def finished(record: dict[str, Any]) -> dict[str, Any]:
    """A record as `check_all` gives it, also if its process ended early.

    `check_all` writes down why in `status` and `reason`, or in `peer` if ours was done.
    """
    record = {**Record(record["name"]).as_dict(), **record}
    status, reason = record.pop("status", ""), record.pop("reason", "")
    if status:
        early = {"unbuildable": "not run", "timeout": "timeout"}.get(status, "fails")
        record["ours"] = {**record["ours"], "status": early, "reason": reason}
    peer = {**asdict(Outcome()), **record["peer"]}
    if peer["status"] == "failed":
        peer["status"] = "fails"
    peer["status"] = peer["status"] or "not run"
    return {**record, "peer": peer}
