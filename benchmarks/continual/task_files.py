"""Tasks as arrays in one file, so that every contestant learns from exactly the same numbers.

The file is an uncompressed .npz: for task K, counted from 0, it holds `x_train_K`, `y_train_K`,
`x_test_K` and `y_test_K`, and of tasks with images set aside also `x_validation_K` and
`y_validation_K`. Images are float32 `(N, channels, H, W)` and already normalised; labels are int64
and count from 0 within their task.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """Images and labels of one task; `(N, channels, H, W)` float32 and `(N,)` int64."""

    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels
    x_validation: Images | None = None
    y_validation: Labels | None = None

    @property
    def classes(self) -> int:
        """How many classes the task has; labels go from 0 to one less."""
        return int(max(self.y_train.max(), self.y_test.max())) + 1

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.x_train.shape[1:]
        return channels, height, width


def write_tasks(path: Path, tasks: Sequence[Task]) -> None:
    """Writes tasks, which `read_tasks` reads back bit for bit.

    Args:
        path: The file, whatever its suffix; it is replaced if it is there.
        tasks: In the order in which they are to be learnt.

    Raises:
        ValueError: An array has another type or shape than the layout asks for; nothing is written.
    """
    arrays: dict[str, Any] = {}
    for number, task in enumerate(tasks):
        for split in ("train", "test", "validation"):
            for kind in "xy":
                values = getattr(task, f"{kind}_{split}")
                if values is not None:
                    arrays[f"{kind}_{split}_{number}"] = values
    _tasks(arrays, str(path))
    with path.open("wb") as file:
        np.savez(file, **arrays)


def read_tasks(path: Path) -> list[Task]:
    """The tasks of a file, in their order.

    Args:
        path: A file written by `write_tasks`, or by anybody in this layout.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no .npz, or what it holds is not in this layout.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file of tasks")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is no .npz file")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        raise ValueError(f"{path} is no whole .npz file of plain arrays") from error
    return _tasks(arrays, str(path))


def _tasks(arrays: Mapping[str, Any], where: str) -> list[Task]:
    count = sum(name.startswith("x_train_") for name in arrays)
    known = {
        f"{kind}_{split}_{number}"
        for number in range(count)
        for split in ("train", "test", "validation")
        for kind in "xy"
    }
    if not count or arrays.keys() - known:
        odd = ", ".join(sorted(arrays.keys() - known)) or "no x_train_0"
        raise ValueError(f"{where}: not the arrays of tasks 0, 1, ... without a gap: {odd}")
    tasks = []
    for number in range(count):
        given: dict[str, Any] = {}
        for split in ("train", "test", "validation"):
            x, y = f"x_{split}_{number}", f"y_{split}_{number}"
            if split == "validation" and x not in arrays and y not in arrays:
                continue
            given[f"x_{split}"], given[f"y_{split}"] = _pair(arrays, x, y, where)
        tasks.append(Task(**given))
    if len({task.image_shape for task in tasks}) > 1:
        raise ValueError(f"{where}: images of different shapes")
    return tasks


def _pair(arrays: Mapping[str, Any], x: str, y: str, where: str) -> tuple[Images, Labels]:
    for name, dtype, dimensions in ((x, np.float32, 4), (y, np.int64, 1)):
        if name not in arrays:
            raise ValueError(f"{where}: {name} is missing")
        found = arrays[name]
        if found.dtype != dtype or found.ndim != dimensions:
            asked = f"{np.dtype(dtype)} with {dimensions} dimension{'s' * (dimensions > 1)}"
            raise ValueError(f"{where}: {name} is {found.dtype} {found.shape}, not {asked}")
    images, labels = arrays[x], arrays[y]
    if len(images) != len(labels) or not len(labels):
        raise ValueError(f"{where}: {x} has {len(images)} images and {y} {len(labels)} labels")
    if labels.min() < 0:
        raise ValueError(f"{where}: {y} has labels below 0")
    return images, labels
