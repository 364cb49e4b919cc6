"""The result of every reader of a data format, and the error that all of them raise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, TypeAlias
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipInfo

import click
import numpy as np
from numpy.typing import NDArray

from splitgrow.cli.settings import MOST_GB

Integers: TypeAlias = NDArray[np.int64]
Images: TypeAlias = NDArray[Any]

# Wraps a loop over file names, with a label, to show how far it is.
Track: TypeAlias = Callable[[Sequence[str], str], Iterable[str]]


class DatasetError(click.ClickException):
    """A data file that cannot be used. It names the file, the fault and the expected data."""

    def __init__(self, source: Path | str, problem: str, expected: str) -> None:
        super().__init__(f"{source}: {problem}; expected {expected}.")


class Room:
    """The bytes that a data set may take, as its files hold it once they are uncompressed.

    A small file may promise any size, or unpack to it. So each reader asks for room, by the size
    that a file declares, before it makes an array, and reads no further than that.

    Args:
        gigabytes: How much room there is, in units of 10**9 bytes.

    Attributes:
        left: The bytes that nothing has taken yet.
    """

    def __init__(self, gigabytes: float = MOST_GB) -> None:
        self.gigabytes = gigabytes
        self.left = int(gigabytes * 1e9)

    def take(self, source: Path | str, size: int) -> None:
        """Takes room for good.

        Raises:
            DatasetError: if there is not as much.
        """
        self.check(source, size)
        self.left -= size

    def check(self, source: Path | str, size: int) -> None:
        """Makes sure that something fits for a moment.

        Raises:
            DatasetError: if it does not.
        """
        if size > self.left:
            raise DatasetError(
                source,
                f"it takes {size:,} bytes of memory, and {self.left:,} are left of the "
                f"{self.gigabytes:g} GB that a data set may take",
                "smaller data, or a larger --max-gb",
            )

    def read(self, source: Path | str, file: IO[bytes]) -> bytes:
        """The rest of a file, which fits for a moment, whichever size it has declared.

        Raises:
            DatasetError: if it does not.
        """
        chunks: list[bytes] = []
        size = 0
        # A zip file unpacks no more than is asked for. One byte more shows that it is too large.
        while chunk := file.read(min(_CHUNK, self.left - size + 1)):
            size += len(chunk)
            self.check(source, size)
            chunks.append(chunk)
        return b"".join(chunks)


_CHUNK = 1 << 20


def refuse_other_packing(source: Path | str, member: ZipInfo) -> None:
    """Makes sure that a file in a zip file unpacks in pieces.

    Raises:
        DatasetError: if it does not: bzip2 and lzma unpack all that a piece holds at once.
    """
    if member.compress_type not in {ZIP_STORED, ZIP_DEFLATED}:
        raise DatasetError(
            source, f"it is packed by method {member.compress_type}", "deflated or stored files"
        )


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
        folders: Whether these are folders, which lie there as tasks.
    """

    train: Split
    test: Split
    classes: tuple[str, ...] | None = None
    superclasses: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    folders: bool = False


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
