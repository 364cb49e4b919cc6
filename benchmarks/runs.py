"""Training runs kept in a file: with their settings, so that only equal ones are continued."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed.machine import commit, machine
from benchmarks.speed.settings import Settings as Where

FOLDER = Path(__file__).parent / "results"


def write_runs(path: Path, settings: Any, runs: Sequence[Any]) -> None:
    """Writes all runs, with where and of what they were made.

    Args:
        path: The file.
        settings: The dataclass with which they were made.
        runs: Dataclasses.
    """
    where = Where(quick=False, device="cpu", rounds=1, threads=torch.get_num_threads())
    content = {
        "settings": asdict(settings),
        "machine": {k: v for k, v in machine(where).items() if k != "rounds"},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
        "runs": [asdict(run) for run in runs],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")


def kept_runs(path: Path, settings: Any) -> list[dict[str, Any]]:
    """The fields of the runs that were made with these settings; none if there is no file."""
    content = json.loads(path.read_text()) if path.exists() else {}
    same = content.get("settings") == json.loads(json.dumps(asdict(settings)))
    return [_tuples(run) for run in content["runs"]] if same else []


def kept_settings(path: Path) -> dict[str, Any]:
    """The fields of the settings in a file."""
    return _tuples(json.loads(path.read_text())["settings"])


def origin(path: Path) -> str:
    """Where, when and of what the runs in a file were made, as a sentence."""
    content = json.loads(path.read_text())
    where = content["machine"]
    threads = f"{where['threads']} thread" + "s" * (where["threads"] > 1)
    return (
        f"On {where['cpu']}, {threads}, torch {where['torch']}; {content['date']}, "
        f"{content['commit']}."
    )


def _tuples(value: Any) -> Any:
    """A value as JSON has it, with tuples in place of lists, as dataclasses have them."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
