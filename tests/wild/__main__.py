"""Draws random programs, grows them, and counts the outcomes.

PYTHONPATH=tests:. python -m wild --programs 20000 --seed 0
PYTHONPATH=tests:. python -m wild --program 1234
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from wild.children import verdicts
from wild.programs import draw
from wild.smaller import smaller as without_lines
from wild.summary import Progress, Summary
from wild.trials import tried_on


def main() -> int:
    """Exit code 1 if anything is wrong, 130 if it was interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first program")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--program", type=int, help="the seed of one, shown and tried alone")
    parser.add_argument("--json", type=Path, help="where the summary goes")
    parser.add_argument("--smaller", action="store_true", help="with fewer lines, if it is wrong")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.program is not None:
        return one(asked.program, smaller=asked.smaller)
    summary, code = Summary(), 0
    progress = Progress(asked.programs)
    try:
        for verdict in verdicts(range(asked.seed, asked.seed + asked.programs), asked.jobs):
            summary.add(verdict)
            progress.tell(summary, verdict)
            if asked.json and not sum(summary.verdicts.values()) % 1000:
                summary.write(asked.json)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: this is how far it came\n")
        code = 130
    if asked.json:
        summary.write(asked.json)
    sys.stdout.write(summary.text())
    return code or int(bool(summary.findings))


def one(seed: int, *, smaller: bool) -> int:
    """Shows a program and what comes of it."""
    program = draw(seed)
    if smaller:
        program = without_lines(program, tried_on(program))
    sys.stdout.write(f"{program.source}\nforward takes {list(program.arguments)}\n")
    verdict = tried_on(program)
    sys.stdout.write(f"{verdict}\n")
    return int(verdict.verdict == "WRONG")


if __name__ == "__main__":
    sys.exit(main())
