"""Reads a data set from a directory of idx files, the format of MNIST and its successors.

An idx file is a big-endian header (two zero bytes, the type of the values, the number of
dimensions, each dimension's size as 32 bits) and then the values.

Reference: http://yann.lecun.com/exdb/mnist/
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from splitgrow.demos.rawdata import DatasetError, RawData, Room, array_split

_UNSIGNED_BYTE = 0x08
_CHUNK = 1 << 20
_EXPECTED = "train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and"
_EXPECTED += " t10k-labels-idx1-ubyte, each plain or as .gz"


def holds_idx(folder: Path) -> bool:
    """Whether the directory has any idx file, so that it is read as such."""
    return any(folder.glob("*idx[13]-ubyte*"))


def read(folder: Path, room: Room) -> RawData:
    """The four idx files of `folder`.

    Raises:
        DatasetError: if a file is missing, damaged, or does not fit the others.
    """
    x_train = _read(_find(folder, "train-images", 3), 3, room)
    x_test = _read(_find(folder, "t10k-images", 3), 3, room)
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DatasetError(
            folder,
            f"training images of {x_train.shape[1:]} and test images of {x_test.shape[1:]} pixels",
            "one size",
        )
    y_train = _read(_find(folder, "train-labels", 1), 1, room)
    y_test = _read(_find(folder, "t10k-labels", 1), 1, room)
    return RawData(
        train=array_split(f"{folder} (train)", x_train[:, None], y_train),
        test=array_split(f"{folder} (t10k)", x_test[:, None], y_test),
    )


def _find(folder: Path, role: str, dimensions: int) -> Path:
    for separator in "-.":
        for suffix in ("", ".gz"):
            path = folder / f"{role}{separator}idx{dimensions}-ubyte{suffix}"
            if path.is_file():
                return path
    raise DatasetError(folder, f"no {role}-idx{dimensions}-ubyte file", _EXPECTED)


def _read(path: Path, dimensions: int, room: Room) -> NDArray[np.uint8]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _parse(path, cast(BinaryIO, file), dimensions, room)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(path, f"it is damaged ({error})", "a whole idx file") from error


def _parse(path: Path, file: BinaryIO, dimensions: int, room: Room) -> NDArray[np.uint8]:
    header = file.read(4 + 4 * dimensions)
    magic = bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    if header[:4] != magic:
        raise DatasetError(
            path,
            f"it starts with the bytes {header[:4].hex(' ') or '(none)'}",
            f"{magic.hex(' ')}, an idx file of bytes in {dimensions} dimensions",
        )
    if len(header) < 4 + 4 * dimensions:
        raise DatasetError(path, "it ends within its header", "a whole idx file")
    sizes = struct.unpack(f">{dimensions}I", header[4:])
    if 0 in sizes:
        raise DatasetError(path, f"it is empty (sizes {sizes})", "at least one image")
    count = math.prod(sizes)
    room.take(path, count)
    values = _take(file, count + 1)  # one more than there should be shows a file that is too long
    if len(values) != count:
        found = f"only {len(values)}" if len(values) < count else "more"
        raise DatasetError(
            path, f"its header promises {count} values {sizes}, it holds {found}", f"{count} values"
        )
    return np.frombuffer(values, dtype=np.uint8).reshape(sizes)


def _take(file: BinaryIO, count: int) -> bytes:
    """At most `count` bytes; memory follows the file's content, not the promise of its header."""
    chunks: list[bytes] = []
    while count > 0 and (chunk := file.read(min(_CHUNK, count))):
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)
