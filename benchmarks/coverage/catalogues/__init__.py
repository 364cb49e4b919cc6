"""Which models there are, how each is made, and what it is fed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, cast

import torch
from torch import nn

LIBRARIES = ("torchvision", "timm", "transformers")

Sample = Callable[[], tuple[Any, ...]]
"""Makes the positional arguments of one call."""


@dataclass(frozen=True)
class Subject:
    """A model to check.

    Attributes:
        library: The package that it comes from.
        name: Its name there.
        family: The module that defines it.
        build: Makes it, with random weights.
        samples: Ways to feed it; the first that runs is taken.
        detects: Whether it answers with boxes, whose number may change.
        tags: What else it is counted as.
        roles: Whether each role of its layers is grown by itself, too.
    """

    library: str
    name: str
    family: str
    build: Callable[[], nn.Module]
    samples: tuple[Sample, ...]
    detects: bool = False
    tags: tuple[str, ...] = ()
    roles: bool = False


class Catalogue(Protocol):
    """What each library's module of this package offers."""

    def names(self) -> list[str]:
        """The names of all its models."""

    def subject(self, name: str) -> Subject:
        """The model of a name."""

    def version(self) -> str:
        """The library's version."""

    def totals(self) -> dict[str, int]:
        """How many models, families and models of each tag there are."""


def module_of(library: str) -> str:
    """The name of the module that lists a library's models."""
    return f"{__name__}.{library}_models"


def catalogue(library: str) -> Catalogue:
    """A library's models. The library is only imported now."""
    return cast(Catalogue, import_module(module_of(library)))


def find(library: str, name: str) -> Subject:
    """The model of a name."""
    return catalogue(library).subject(name)


def image(*shape: int) -> Sample:
    """Feeds one random tensor."""
    return lambda: (torch.randn(shape),)


def images(channels: int, sizes: tuple[int, ...], batch: int = 2) -> tuple[Sample, ...]:
    """Feeds square images, tried at each of the sizes."""
    return tuple(image(batch, channels, size, size) for size in sizes)
