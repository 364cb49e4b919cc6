"""Breaks the library in each of the chosen places, and names the test that notices.

PYTHONPATH=tests:. python -m breaks --json breaks.json
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from breaks.catalogue import BREAKS
from breaks.runs import Copy, Outcome, is_stale, sources


def main() -> int:
    """Exit code 1 unless each of the breaks was caught."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="the numbers of some")
    parser.add_argument("--count", action="store_true", help="says how many there are, by package")
    parser.add_argument("--json", type=Path, help="the outcomes; what is in it is not done again")
    parser.add_argument(
        "--seconds", type=float, default=3600, help="that one run of tests may take"
    )
    parser.add_argument("--first", action="store_true", help="runs the tests of the module alone")
    asked = parser.parse_args()
    if asked.count:
        return count()
    numbers = asked.only or range(1, len(BREAKS) + 1)
    if not {*numbers} <= {*range(1, len(BREAKS) + 1)}:
        parser.error(f"breaks have the numbers 1 to {len(BREAKS)}")
    known = read(asked.json)
    mark = sources()
    try:
        with tempfile.TemporaryDirectory() as directory:
            copy = Copy(Path(directory), limit=asked.seconds, full=not asked.first)
            for number in numbers:
                if number in known and known[number].sources == mark and not asked.only:
                    continue
                known[number] = copy.tried(number, BREAKS[number - 1], mark)
                sys.stderr.write(f"{line(known[number])}\n")
                write(asked.json, known)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; with --json it goes on from here\n")
        return 130
    outcomes = [known[number] for number in numbers]
    states = Counter(outcome.state for outcome in outcomes)
    for outcome in outcomes:
        if outcome.state != "caught":
            sys.stdout.write(f"{line(outcome)}\n")
    seconds = sum(outcome.seconds for outcome in outcomes)
    total = ", ".join(f"{number} {state}" for state, number in states.most_common())
    sys.stdout.write(f"{len(outcomes)} breaks: {total}; {seconds:.0f} s\n")
    return int(states["caught"] < len(outcomes))


def count() -> int:
    """Says how many breaks there are; exit code 1 if some of them are stale."""
    packages = Counter(change.file.partition("/")[0] for change in BREAKS)
    stale = [number for number, change in enumerate(BREAKS, 1) if is_stale(change)]
    told = ", ".join(f"{package} {number}" for package, number in packages.items())
    sys.stdout.write(f"{len(BREAKS)} breaks: {told}; stale: {stale or 'none'}\n")
    return int(bool(stale))


def line(outcome: Outcome) -> str:
    """One outcome in words."""
    by = f" by {outcome.test}" if outcome.test else ""
    return (
        f"{outcome.number:2} {outcome.state}{by} in {outcome.seconds:g} s: {outcome.file}: "
        f"{outcome.meaning}"
    )


def read(path: Path | None) -> dict[int, Outcome]:
    """The outcomes in a file, by number."""
    if path is None or not path.exists():
        return {}
    return {item["number"]: Outcome(**item) for item in json.loads(path.read_text())}


def write(path: Path | None, outcomes: dict[int, Outcome]) -> None:
    """Writes the outcomes to a file, at once."""
    if path is not None:
        aside = path.with_suffix(".part")
        found = [asdict(outcomes[number]) for number in sorted(outcomes)]
        aside.write_text(json.dumps(found, indent=1) + "\n")
        aside.replace(path)


if __name__ == "__main__":
    sys.exit(main())
