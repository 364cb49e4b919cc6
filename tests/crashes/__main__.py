"""Kills processes that train and save, and has saving fail at every operation in turn.

PYTHONPATH=tests:. python -m crashes --kills 200
PYTHONPATH=tests:. python -m crashes --together 200
PYTHONPATH=tests:. python -m crashes --faults
"""

from __future__ import annotations

import argparse
import sys

import torch

from crashes.faults import faults
from crashes.kills import kill
from crashes.together import kill_together


def main() -> int:
    """Exit code 1 if a file was not whole, or a run not lossless."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--together", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wrong: list[str] = []
    if asked.kills:
        found = kill(asked.kills, asked.seed)
        wrong += found.faults
        sys.stdout.write(
            f"{found.kills} kills, {found.saving} of them while a file was written; {found.runs} "
            f"runs came to their end; {len(found.faults)} faults\n"
        )
    if asked.together:
        found = kill_together(asked.together, asked.seed)
        wrong += found.faults
        sys.stdout.write(
            f"{found.kills} kills of processes that save to one path, {found.saving} of them while "
            f"a file was written; {len(found.faults)} faults\n"
        )
    for how in ("dies", "fails", "is interrupted") if asked.faults else ():
        operations, new = faults(how)  # type: ignore[arg-type]
        wrong += [f"{how} at {fault}" for fault in new]
        sys.stdout.write(f"{how}: {operations} operations, {len(new)} faults\n")
    sys.stdout.write("".join(f"{fault}\n" for fault in wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
