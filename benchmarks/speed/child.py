"""Measuring in a process of its own, where nothing else has left its mark on memory."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

import splitgrow
from benchmarks.speed.settings import Settings

_ROOT = Path(__file__).parents[2]
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""glibc keeps freed memory for later by default; so it would count as in use."""


class ChildError(RuntimeError):
    """The process that measured has failed."""


def in_child(
    function: Callable[..., dict[str, float]], settings: Settings, **arguments: Any
) -> dict[str, float]:
    """What a function of a module returns, called in a new process.

    Args:
        function: Takes the settings and the arguments.
        settings: They are set up in the new process too.
        **arguments: What JSON can hold.

    Raises:
        ChildError: If the process fails.
    """
    message = json.dumps(
        {
            "module": function.__module__,
            "function": function.__name__,
            "settings": asdict(settings),
            "arguments": arguments,
        }
    )
    done = subprocess.run(  # noqa: PLW1510
        [sys.executable, "-m", "benchmarks.speed.child"],
        input=message,
        capture_output=True,
        text=True,
        cwd=_ROOT,
        env={**os.environ, **GIVE_BACK, "OMP_NUM_THREADS": str(settings.threads)},
    )
    if done.returncode != 0:
        raise ChildError(f"{function.__name__} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def warm_up(settings: Settings) -> None:
    """Grows, trains and fuses a tiny network: what is loaded on first use is nobody's memory."""
    layers = nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 2)
    x = torch.randn(4, 2, 3, 3, device=settings.device)
    model: Any = splitgrow.growable(nn.Sequential(*layers).to(settings.device), x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model.expand_layer("0", 1, optimizer=optimizer)
    for network in (model, splitgrow.merge(model)):
        network(x).square().mean().backward()
    optimizer.step()
    splitgrow.fuse(model)


def main() -> None:
    """Does what standard input asks for, and prints the answer."""
    message = json.loads(sys.stdin.read())
    settings = Settings(**message["settings"])
    settings.prepare()
    warm_up(settings)
    function = getattr(importlib.import_module(message["module"]), message["function"])
    print(json.dumps(function(settings, **message["arguments"])))


if __name__ == "__main__":
    main()
