"""Trains, kills and resumes in one tool: ``PYTHONPATH=tests:. python -m trainers lightning``."""

from __future__ import annotations

import argparse
import sys

import torch

from trainers.runs import differences
from trainers.tools import TOOLS, quiet


def main() -> int:
    """Exit code 1 if a run did not resume in the same bits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    quiet()
    wrong = list(differences(TOOLS[asked.tool]()))
    sys.stdout.write("".join(f"{fault}\n" for fault in wrong) + f"{len(wrong)} faults\n")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
