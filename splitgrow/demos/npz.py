"""Reads a data set from one `.npz` file of arrays."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import (
    MAGIC_PREFIX,
    read_array,
    read_array_header_1_0,
    read_array_header_2_0,
    read_magic,
)
from numpy.typing import NDArray

from splitgrow.demos.rawdata import (
    DatasetError,
    Images,
    RawData,
    Room,
    array_split,
    refuse_other_packing,
)

KEYS = ("x_train", "y_train", "x_test", "y_test")
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_IMAGES = "images of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with 1, 3 or 4 channels"


def read(path: Path, room: Room) -> RawData:
    """The arrays x_train, y_train, x_test and y_test of the file at `path`.

    Raises:
        DatasetError: if the file is damaged, lacks an array, or an array does not fit.
    """
    arrays = _arrays(path, room)
    x_train = _images(f"{path} (x_train)", arrays["x_train"])
    x_test = _images(f"{path} (x_test)", arrays["x_test"])
    if x_train.shape[1:] != x_test.shape[1:]:
        raise DatasetError(
            path,
            f"training images of shape {x_train.shape[1:]}, test images of {x_test.shape[1:]}",
            "one shape (C, H, W) for all",
        )
    return RawData(
        train=array_split(f"{path} (y_train)", x_train, arrays["y_train"]),
        test=array_split(f"{path} (y_test)", x_test, arrays["y_test"]),
    )


def _arrays(path: Path, room: Room) -> dict[str, NDArray[Any]]:
    expected = f"an .npz file with the arrays {', '.join(KEYS)}"
    try:
        with path.open("rb") as file:
            if file.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX:
                raise DatasetError(path, "it holds one single array", expected)
            archive = zipfile.ZipFile(file)
            members = {member.filename.removesuffix(".npy"): member for member in archive.filelist}
            missing = [key for key in KEYS if key not in members]
            if missing:
                found = ", ".join(members)
                missed = ", ".join(missing)
                raise DatasetError(path, f"no {missed} among its arrays ({found})", expected)
            for key in KEYS:
                source = f"{path} ({key})"
                refuse_other_packing(source, members[key])
                room.take(source, _size(archive, members[key]))
            return {key: _array(archive, members[key]) for key in KEYS}
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise DatasetError(path, f"it cannot be read ({error})", expected) from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise DatasetError(path, f"it is damaged ({error})", expected) from error


def _size(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> int:
    """The bytes that an array needs by its header, or its file by its entry if these are more."""
    with archive.open(member) as file:
        version = read_magic(file)
        read_header = read_array_header_1_0 if version == (1, 0) else read_array_header_2_0
        shape, _, dtype = read_header(file)
    return max(math.prod(shape) * dtype.itemsize, member.file_size)


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(member) as file:
        # Without allow_pickle a data file cannot run code when it is read.
        array: NDArray[Any] = read_array(file, allow_pickle=False)
        if file.read(1):  # which also compares the checksum
            raise ValueError(f"{member.filename} holds more than its array")
        return array


def _images(source: str, array: NDArray[Any]) -> Images:
    """The images as `(N, C, H, W)`, whichever way the channels were stored.

    Raises:
        DatasetError: if `array` cannot be a stack of images.
    """
    if array.dtype.kind not in "buif":
        raise DatasetError(source, f"values of type {array.dtype}", "uint8 or float values")
    if 0 in array.shape:
        raise DatasetError(source, f"no values (shape {array.shape})", _IMAGES)
    if array.ndim == 3:
        return array[:, None]
    if array.ndim != 4:
        raise DatasetError(source, f"an array of shape {array.shape}", _IMAGES)
    first, last = array.shape[1] in _CHANNELS, array.shape[3] in _CHANNELS
    if first == last:
        found = "either way round" if first else "nowhere"
        raise DatasetError(source, f"shape {array.shape} has its channels {found}", _IMAGES)
    return array if first else np.moveaxis(array, 3, 1)
