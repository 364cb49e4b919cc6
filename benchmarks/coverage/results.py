"""The JSON file of a library: written whole after every model, so that a run can be taken up."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Collection
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.coverage.findings import tidy

FOLDER = Path(__file__).parents[1] / "results"

DONE = frozenset({"verified", "shapes verified"})
"""Statuses that leave nothing to do."""


class Results:
    """What is known of a library's models.

    Attributes:
        path: The file.
        library: The package that the models come from.
        version: Its version.
        totals: How many models and families it has, tried or not.
        machine: Where and when the file was written.
        models: The records, as JSON data, by name.
    """

    def __init__(self, library: str, folder: Path = FOLDER) -> None:
        self.library = library
        self.path = folder / f"coverage-{library}.json"
        self.version = ""
        self.totals: dict[str, int] = {}
        self.machine: dict[str, Any] = {}
        self.models: dict[str, dict[str, Any]] = {}
        if self.path.exists():
            data = json.loads(self.path.read_text())
            self.version, self.machine = data["version"], data["machine"]
            self.totals, self.models = data["totals"], data["models"]

    def add(self, record: dict[str, Any]) -> None:
        """Takes in one model's record and writes the file."""
        self.models[record["name"]] = record
        self.write()

    def write(self) -> None:
        """Writes the file, or leaves the old one as it is."""
        self.machine = machine()
        data = {
            "library": self.library,
            "version": self.version,
            "totals": self.totals,
            "machine": self.machine,
            "models": dict(sorted(self.models.items())),
        }
        write_json(self.path, data)


def machine() -> dict[str, Any]:
    """Where and when this runs."""
    return {
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "splitgrow": version("splitgrow"),
        "date": datetime.date.today().isoformat(),
    }


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Writes a file in one step: whoever reads it sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(data, indent=1) + "\n")
    draft.replace(path)


def matching(names: Collection[str], pattern: str | None) -> list[str]:
    """The names that fit a pattern such as ``resnet*``; without a pattern, all."""
    return [name for name in names if pattern is None or fnmatch(name, pattern)]


def to_do(
    names: Collection[str],
    models: dict[str, dict[str, Any]],
    *,
    again: bool = False,
    again_failed: bool = False,
) -> list[str]:
    """The models that have to run: those without a result, and those that are asked for again.

    Args:
        names: The models in question, in the order in which they run.
        models: The records so far.
        again: Whether to run those with a result too.
        again_failed: Whether to run those too whose result is not "verified" (as shapes or not).
    """

    def due(name: str) -> bool:
        if again or name not in models:
            return True
        return again_failed and models[name]["status"] not in DONE

    return [name for name in names if due(name)]


def unfinished(name: str, partial: dict[str, Any], step: str, cause: str) -> dict[str, Any]:
    """The record of a model whose process did not come to its end.

    Args:
        name: The model.
        partial: The record as it was at the start of the step; empty if there is none.
        step: The step during which it ended. During "peer" its own result stands.
        cause: "timeout", or how the process ended.
    """
    record = {"name": name, "notes": [], "peer": {}, **partial}
    if step == "peer":
        status = "timeout" if cause == "timeout" else "failed"
        record["peer"] = {"status": status, "reason": cause}
        return record
    if cause == "timeout":
        record["status"] = "timeout"
    else:
        record["status"] = "unbuildable" if step == "build" else "wrong"
    record["reason"] = tidy(f"in {step}: {cause}")
    return record
