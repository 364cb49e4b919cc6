"""The results of all programs: counted, printed and written down."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from wild.verdicts import Verdict, general

REASONS = 10
"""Of the most frequent ones that are told."""


@dataclass
class Summary:
    """Counts, reasons and findings."""

    verdicts: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    findings: list[Verdict] = field(default_factory=list)
    slowest: Verdict | None = None

    def add(self, verdict: Verdict) -> None:
        """Counts one more."""
        self.verdicts[verdict.verdict] += 1
        if verdict.verdict == "WRONG":
            self.findings.append(verdict)
        elif verdict.text:
            self.reasons[f"{verdict.verdict}: {general(verdict.text)}"] += 1
        if self.slowest is None or verdict.seconds > self.slowest.seconds:
            self.slowest = verdict

    @property
    def internal(self) -> int:
        """Findings that are internal errors."""
        return sum(finding.kind == "internal" for finding in self.findings)

    def groups(self) -> dict[str, list[Verdict]]:
        """Findings that look alike, the most frequent first."""
        found: dict[str, list[Verdict]] = {}
        for finding in self.findings:
            found.setdefault(f"{finding.kind}: {general(finding.text)}", []).append(finding)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    def as_data(self) -> dict[str, Any]:
        """All of it as plain data, the same for the same programs."""
        findings = [asdict(finding) for finding in self.findings]
        for finding in findings:
            del finding["seconds"]
        return {
            "programs": sum(self.verdicts.values()),
            "verdicts": dict(sorted(self.verdicts.items())),
            "internal errors": self.internal,
            "reasons": dict(self.reasons.most_common(REASONS)),
            "groups": {
                name: [finding.seed for finding in found] for name, found in self.groups().items()
            },
            "findings": findings,
        }

    def write(self, path: Path) -> None:
        """Writes it down, whole or not at all."""
        aside = path.with_name(path.name + ".new")
        aside.write_text(json.dumps(self.as_data(), indent=1) + "\n")
        aside.replace(path)

    def text(self) -> str:
        """For the terminal."""
        total = sum(self.verdicts.values())
        lines = [f"{count:7,}  {name}" for name, count in self.verdicts.most_common()]
        lines += ["", f"the {REASONS} most frequent reasons"]
        lines += [f"{count:7,}  {reason}" for reason, count in self.reasons.most_common(REASONS)]
        groups = self.groups()
        if groups:
            lines += ["", "findings, by what they look like, with the first seeds of each"]
        for name, found in groups.items():
            seeds = ", ".join(str(finding.seed) for finding in found[:5])
            lines.append(f"{len(found):7,}  {name}\n         --program {seeds}")
        wrong = self.verdicts["WRONG"]
        lines.append(
            f"\n{total:,} programs, {wrong} wrong, {self.internal} of them internal errors"
        )
        return "\n".join(lines) + "\n"


class Progress:
    """One line that tells how far it is."""

    def __init__(self, total: int, stream: TextIO | None = None, every: int = 500) -> None:
        self.total, self.stream, self.every = total, stream or sys.stderr, every
        self.started = self.told = time.monotonic()

    def tell(self, summary: Summary, last: Verdict) -> None:
        """After each program: findings at once, the count now and then."""
        if last.verdict == "WRONG":
            self._line(
                f"--program {last.seed}: {last.kind}: {last.text[:150]} [{last.layer}]", "\n"
            )
        done, now = sum(summary.verdicts.values()), time.monotonic()
        if self.stream.isatty():
            if now - self.told > 0.5 or done == self.total:
                self._line(self._how_far(summary, done, now), "")
                self.told = now
        elif not done % self.every or done == self.total:
            self._line(self._how_far(summary, done, now), "\n")

    def _how_far(self, summary: Summary, done: int, now: float) -> str:
        rate = done / max(now - self.started, 1e-9)
        left = (self.total - done) / max(rate, 1e-9)
        counts = ", ".join(f"{n} {name}" for name, n in sorted(summary.verdicts.items()))
        return f"{done:,} of {self.total:,}: {counts}; {rate:.0f}/s, {left / 60:.0f} min left"

    def _line(self, text: str, end: str) -> None:
        clear = "\r\x1b[K" if self.stream.isatty() else ""
        self.stream.write(f"{clear}{text}{end}")
        self.stream.flush()
