"""Loads broken checkpoints and counts the outcomes.

PYTHONPATH=tests:. python -m hostile --mutants 20000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from json import dumps
from pathlib import Path

import torch

from hostile.trials import SECONDS, Trial, Trials


def main() -> int:
    """Exit code 1 if a file does anything but load whole or be refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutants", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="the number of the first")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that one may take")
    parser.add_argument("--json", type=Path, help="where each trial is noted, one a line")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        trials = Trials(Path(directory), seconds=asked.seconds)
        found = []
        for trial in trials.mutants(range(asked.first, asked.first + asked.mutants)):
            found.append(trial)
            if trials.is_bad(found[-1]):
                sys.stderr.write(f"{found[-1]}\n")
            if asked.json:
                with asked.json.open("a") as file:
                    file.write(dumps(asdict(found[-1])) + "\n")
            if not len(found) % 1000:
                sys.stderr.write(f"{len(found)} files\n")
        sys.stdout.write(report(trials, found))
        return int(any(trials.is_bad(trial) for trial in found))


def report(trials: Trials, found: list[Trial]) -> str:
    """What came of all of them."""
    counts = Counter((trial.kind, trial.outcome) for trial in found)
    lines = [f"{count:7,}  {kind}: {outcome}" for (kind, outcome), count in sorted(counts.items())]
    slow = max(found, key=lambda trial: trial.seconds)
    large = max(found, key=lambda trial: trial.memory - 2 * trial.size)
    mib = 2**20
    lines += [
        f"{len(found):,} files, {sum(map(trials.is_bad, found))} with a fault",
        f"longest: {slow.seconds:.2f} s (number {slow.number}, {slow.kind})",
        f"most memory beyond twice the file: {(large.memory - 2 * large.size) / mib:.1f} MiB "
        f"(number {large.number}, {large.kind}); whole files: up to {trials.allowed / mib:.1f} MiB",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
