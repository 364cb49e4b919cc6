"""How many parameters each model has: counted once, without making their values, and kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.coverage.catalogues import catalogue
from benchmarks.coverage.preparing import count_parameters
from benchmarks.coverage.results import FOLDER, write_json

UNKNOWN = 10**15
"""Where a model cannot be made without values: it comes last."""


def sizes_of(
    library: str,
    names: Sequence[str],
    folder: Path = FOLDER,
    step: Callable[[], None] = lambda: None,
) -> dict[str, int]:
    """The number of parameters of each model.

    Args:
        library: The package that they come from.
        names: The models.
        folder: Where the numbers are kept for the next time.
        step: Called after each model.
    """
    listed = catalogue(library)
    path = folder / f"sizes-{library}.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    sizes: dict[str, int] = kept.get("sizes", {}) if kept.get("version") == listed.version() else {}
    new = [name for name in names if name not in sizes]
    for name in new:
        count = count_parameters(listed.subject(name))
        sizes[name] = UNKNOWN if count is None else count
        step()
    if new:
        write_json(path, {"version": listed.version(), "sizes": dict(sorted(sizes.items()))})
    return {name: sizes[name] for name in names}


def smallest_of_each(
    names: Sequence[str], sizes: dict[str, int], family: dict[str, str]
) -> list[str]:
    """The smallest model of each family."""
    chosen: dict[str, str] = {}
    for name in sorted(names, key=lambda name: (sizes[name], name)):
        chosen.setdefault(family[name], name)
    return sorted(chosen.values(), key=lambda name: (sizes[name], name))
