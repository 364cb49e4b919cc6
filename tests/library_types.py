"""Layer types of other libraries, by their names."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from benchmarks.vision import torchvision


def taken(path: str) -> Any:
    """A layer type of another library, by its dotted name."""
    torchvision()  # timm imports it
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)
