"""Reads a data set from one `.npz` file of arrays."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from splitgrow.demos.rawdata import DatasetError, Images, RawData, array_split

KEYS = ("x_train", "y_train", "x_test", "y_test")
_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA
_IMAGES = "images of shape (N, H, W), (N, H, W, C) or (N, C, H, W) with 1, 3 or 4 channels"


def read(path: Path) -> RawData:
    """The arrays x_train, y_train, x_test and y_test of the file at `path`.

    Raises:
        DatasetError: if the file is damaged, lacks an array, or an array does not fit.
    """
    arrays = _arrays(path)
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


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    expected = f"an .npz file with the arrays {', '.join(KEYS)}"
    try:
        with path.open("rb") as file:
            # Without allow_pickle a data file cannot run code when it is opened.
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, NpzFile):
                raise DatasetError(path, "it holds one single array", expected)
            missing = [key for key in KEYS if key not in archive]
            if missing:
                found = ", ".join(archive.files)
                missed = ", ".join(missing)
                raise DatasetError(path, f"no {missed} among its arrays ({found})", expected)
            return {key: archive[key] for key in KEYS}
    except (OSError, ValueError, EOFError, MemoryError) as error:
        raise DatasetError(path, f"it cannot be read ({error})", expected) from error
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError) as error:
        raise DatasetError(path, f"it is damaged ({error})", expected) from error


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
