"""Draws lives of a growable model, and counts those in which a law does not hold.

PYTHONPATH=tests:. python -m machine --sequences 2000 --seed 0
PYTHONPATH=tests:. python -m machine --sequences 20 --seed 17 --shrink
"""

from __future__ import annotations

import argparse
import gc
import sys
import warnings

import torch

from machine.rules import Machine
from machine.runs import batch, batches


def main() -> int:
    """Exit code 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sequences", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0, help="of the first batch")
    parser.add_argument("--size", type=int, default=20, help="sequences of a batch")
    parser.add_argument("--shrink", action="store_true", help="one batch, to its shortest life")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    gc.freeze()
    if asked.shrink:
        drawn = iter([batch(asked.sequences, asked.seed, shrink=True)])
    else:
        drawn = batches(asked.sequences, asked.seed, asked.size)
    faults = []
    for fault in drawn:
        if fault is not None:
            faults.append(fault)
            sys.stdout.write(f"seed {fault.seed}: {fault.kind}\n{fault.story}\n")
        sys.stderr.write(f"\r{Machine.steps['lives']} sequences, {len(faults)} faults")
        sys.stdout.flush()
    sys.stdout.write(f"\n{dict(Machine.steps)}\n")
    sys.stdout.write(f"{Machine.steps['lives']} sequences, {len(faults)} faults\n")
    for fault in faults:
        sys.stdout.write(f"seed {fault.seed}: {fault.kind}\n")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
