"""Runs that grow are killed and resumed by the means of each trainer, to the same bits."""

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
    "tool",
    ["torch", "lightning", "lightning-ema", "lightning-swa", "transformers", "accelerate", "timm"],
)
def test_a_killed_run_resumes_to_the_bit(tool: str) -> None:
    """By the tool's own checkpoint: parameters, optimizer states, averages.

    It grows before it is killed and after it was resumed; in width, by an insertion and by both,
    with AdamW fused or not. Two runs must differ without growth.
    """
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
