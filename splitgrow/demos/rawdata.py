"""The result of every reader of a data format, and the error that all of them raise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import click
import numpy as np
from numpy.typing import NDArray

Integers: TypeAlias = NDArray[np.int64]
Images: TypeAlias = NDArray[Any]

# Wraps a loop over file names, with a label, to show how far it is.
Track: TypeAlias = Callable[[Sequence[str], str], Iterable[str]]


class DatasetError(click.ClickException):
    """A data file that cannot be used. It names the file, the fault and the expected data."""

    def __init__(self, source: Path | str, problem: str, expected: str) -> None:
        super().__init__(f"{source}: {problem}; expected {expected}.")


@dataclass(frozen=True)
class Split:
    """The training or the test half of a data set, its images not read yet.

    Labels come first and images on demand, so that a run on a few hundred of 60,000 picture files
    decodes only those.
    """

    labels: Integers  # (N,)
    images: Callable[[Integers], Images]  # indices (n,) -> (n, C, H, W)


@dataclass(frozen=True)
class RawData:
    """Both halves as they are in the file.

    Attributes:
        train: The training half.
        test: The test half.
        classes: The names of labels 0, 1, ... where they have names.
        superclasses: The labels in each superclass, by its name, where there are such.
    """

    train: Split
    test: Split
    classes: tuple[str, ...] | None = None
    superclasses: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


def array_split(source: Path | str, images: Images, labels: NDArray[Any]) -> Split:
    """The split of arrays in memory: images `(N, C, H, W)` and as many integer labels.

    Raises:
        DatasetError: if the labels are not one integer an image.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:  # a column (N, 1), as some exports write
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DatasetError(
            source,
            f"labels of shape {labels.shape} and type {labels.dtype}",
            "one integer an image, of shape (N,)",
        )
    if len(labels) != len(images):
        raise DatasetError(
            source, f"{len(images)} images but {len(labels)} labels", "as many labels as images"
        )
    return Split(labels.astype(np.int64), lambda indices: images[indices])
