"""Starts `trainers.processes` in two processes by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent.parent


def in_two_processes(kind: str, folder: Path) -> list[dict[str, Any]]:
    """The results of both, which have grown alike on different data."""
    path = os.pathsep.join((str(ROOT / "tests"), str(ROOT)))
    run = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    run += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    run += ["-m", "trainers.processes", kind, str(folder)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    options: dict[str, Any] = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL}
    done = subprocess.run(run, env=environment, check=False, timeout=300, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["data"] != other["data"]
    assert len(one["parameters"]) == len(other["parameters"])
    assert all(map(torch.equal, one["parameters"], other["parameters"]))
    return [one, other]
