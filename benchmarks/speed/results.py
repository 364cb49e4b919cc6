"""What was measured, and the JSON file that keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Literal

FOLDER = Path(__file__).parents[1] / "results"

Unit = Literal["ratio", "ms", "MiB"]


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one number.

    Attributes:
        median: The middle one.
        low: The lower quartile.
        high: The upper quartile.
        count: How many there were.

    Example:
        >>> Spread.of([3.0, 1.0, 2.0])
        Spread(median=2.0, low=1.5, high=2.5, count=3)
    """

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of some values, at least one."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], 1)
        low, _, high = quantiles(values, n=4, method="inclusive")
        return cls(median(values), low, high, len(values))


@dataclass(frozen=True)
class Measurement:
    """One number of a claim.

    Attributes:
        case: What it was measured on.
        unit: "ratio", "ms" or "MiB".
        value: The number.
        beside: Other numbers that explain it, each with its unit; not compared with anything.
    """

    case: str
    unit: Unit
    value: Spread
    beside: Mapping[str, str] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The number with its spread, for tables."""
        value = self.value
        digits = 3 if self.unit == "ratio" else 1
        unit = "" if self.unit == "ratio" else f" {self.unit}"
        if value.count == 1:
            return f"{value.median:.{digits}f}{unit}"
        spread = f"{value.low:.{digits}f} to {value.high:.{digits}f}"
        return f"{value.median:.{digits}f}{unit} ({spread})"

    @property
    def beside_text(self) -> str:
        """The other numbers, for tables."""
        return ", ".join(f"{name} {number}" for name, number in self.beside.items())


def milliseconds(seconds: Iterable[float]) -> str:
    """The median of some times, as text."""
    return f"{1000 * median(seconds):.1f} ms"


@dataclass(frozen=True)
class Entry:
    """One claim, measured once.

    Attributes:
        claim: Its name.
        says: What was measured.
        command: How to measure it again.
        date: The day, in UTC.
        commit: The code that was measured.
        machine: Where.
        measurements: What came out.
    """

    claim: str
    says: str
    command: str
    commit: str
    machine: Mapping[str, Any]
    measurements: Sequence[Measurement]
    date: str = field(default_factory=lambda: f"{datetime.now(timezone.utc):%Y-%m-%d}")


def read(path: Path) -> dict[str, Entry]:
    """The entries of a file, by claim; none if there is no such file."""
    if not path.exists():
        return {}
    found = {}
    for entry in json.loads(path.read_text())["claims"]:
        measurements = [
            Measurement(**{**one, "value": Spread(**one["value"])}) for one in entry["measurements"]
        ]
        found[entry["claim"]] = Entry(**{**entry, "measurements": measurements})
    return found


def write(path: Path, entries: Iterable[Entry]) -> None:
    """Writes a file anew, in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"claims": [asdict(entry) for entry in entries]}
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(content, indent=1) + "\n")
    draft.replace(path)  # whoever reads it, or stops this process, sees the old or the new one
