"""Where something was measured, and of which code."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.settings import Settings

_ROOT = Path(__file__).parents[2]


def machine(settings: Settings) -> dict[str, Any]:
    """The processor, the device, and the versions that count."""
    return {
        "device": torch.cuda.get_device_name() if settings.device == "cuda" else "cpu",
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": settings.threads,
        "rounds": settings.rounds,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def commit() -> str:
    """The commit that is checked out, with a + if the library was changed since."""
    name = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", "splitgrow") if name else ""
    return name + "+" * bool(changed)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *arguments],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""  # a copy without its history
    return done.stdout.strip()


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
