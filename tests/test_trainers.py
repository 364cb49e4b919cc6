"""Runs that grow are killed and resumed by the means of four trainers, to the same bits."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.zoo
@pytest.mark.slow
@pytest.mark.parametrize(
    "tool", ["lightning", "lightning-averaged", "transformers", "accelerate", "timm"]
)
def test_a_killed_run_resumes_from_the_tools_own_checkpoint_in_the_same_bits(tool: str) -> None:
    """In width, by an insertion and by both; AdamW fused and not; two runs must differ without."""
    if find_spec(tool.partition("-")[0]) is None:
        pytest.skip(f"needs {tool}")
    path = os.pathsep.join((str(HERE), str(HERE.parent)))
    done = subprocess.run(
        [sys.executable, "-m", "trainers", tool],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["0 faults"], done.stdout + done.stderr[-3000:]
