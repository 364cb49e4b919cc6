"""What is promised, and whether what was measured keeps it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmarks.speed.results import Entry, Measurement

PATH = Path(__file__).parents[1] / "thresholds.json"

Verdict = Literal["met", "in slack", "missed", "BROKEN", ""]


@dataclass(frozen=True)
class Threshold:
    """What one number has to stay under.

    Attributes:
        target: What is promised; None where a number is only reported.
        slack: How far above the target a median may lie by noise.
        known: Where the target is missed: what is kept for now.
        quick: What a quick run has to stay under: far above, as small networks say little about
            speed, but low enough to notice that something is broken.
    """

    target: float | None = None
    slack: float = 0.0
    known: float | None = None
    quick: float | None = None

    def verdict(self, measurement: Measurement, *, quick: bool) -> Verdict:
        """Whether a measurement keeps it; empty where nothing is promised."""
        value = measurement.value.median
        if quick:
            if self.quick is None:
                return ""
            return "met" if value <= self.quick else "BROKEN"
        if self.target is None:
            return ""
        if value <= self.target:
            return "met"
        if value <= self.target + self.slack:
            return "in slack"
        return "missed" if self.known is not None and value <= self.known else "BROKEN"


class Thresholds:
    """The committed thresholds: for a claim, or for one of its cases.

    Args:
        content: For each claim the fields of a `Threshold`, and under "cases" others for some of
            its cases, which count instead.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self._found: dict[str, dict[str, Threshold]] = {}
        for claim, fields in content.items():
            cases = fields.pop("cases", {})
            own = {case: Threshold(**{**fields, **other}) for case, other in cases.items()}
            self._found[claim] = {**own, "": Threshold(**fields)}

    @classmethod
    def read(cls, path: Path = PATH) -> Thresholds:
        """Reads them from a file."""
        return cls(json.loads(path.read_text()))

    def of(self, claim: str, case: str) -> Threshold:
        """The threshold of one case of a claim."""
        cases = self._found.get(claim, {"": Threshold()})
        return cases.get(case, cases[""])

    def broken(self, entries: Iterable[Entry], *, quick: bool) -> list[str]:
        """Names what breaks its threshold, as "claim: case"."""
        return [
            f"{entry.claim}: {one.case}"
            for entry in entries
            for one in entry.measurements
            if self.of(entry.claim, one.case).verdict(one, quick=quick) == "BROKEN"
        ]
