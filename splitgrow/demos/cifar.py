"""Reads CIFAR-10 and CIFAR-100, python or binary version, from the folder or its tar archive.

The files of the python version are pickles, of which nothing is run: see `pickles`. CIFAR-100 has
two labels a picture: the fine ones are the classes, and the coarse ones their superclasses.

Reference: https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitgrow.demos import bundles, pickles
from splitgrow.demos.rawdata import DatasetError, Images, Integers, RawData, array_split

_SIZE = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_MOST_NAMES = 1 << 16  # bytes
_EXPECTED = "the files of CIFAR-10 or CIFAR-100, python or binary version"


@dataclass(frozen=True)
class _Labels:
    """Where labels are, and the names that they stand for."""

    key: str  # in a pickle
    at: int  # the byte in a record of the binary version
    file: str  # of the names
    names_key: str = ""  # in that file, if it is a pickle


@dataclass(frozen=True)
class _Layout:
    train: tuple[str, ...]
    test: str
    fine: _Labels
    coarse: _Labels | None = None
    pickled: bool = False

    @property
    def labels(self) -> tuple[_Labels, ...]:
        return (self.fine,) if self.coarse is None else (self.fine, self.coarse)

    @property
    def pictures(self) -> tuple[str, ...]:
        return (*self.train, self.test)

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.pictures, *dict.fromkeys(labels.file for labels in self.labels))


_LAYOUTS = (
    _Layout(
        _BATCHES,
        "test_batch",
        _Labels("labels", 0, "batches.meta", "label_names"),
        pickled=True,
    ),
    _Layout(
        tuple(f"{name}.bin" for name in _BATCHES),
        "test_batch.bin",
        _Labels("", 0, "batches.meta.txt"),
    ),
    _Layout(
        ("train",),
        "test",
        _Labels("fine_labels", 0, "meta", "fine_label_names"),
        _Labels("coarse_labels", 0, "meta", "coarse_label_names"),
        pickled=True,
    ),
    _Layout(
        ("train.bin",),
        "test.bin",
        _Labels("", 1, "fine_label_names.txt"),
        _Labels("", 0, "coarse_label_names.txt"),
    ),
)


@dataclass(frozen=True)
class _Half:
    images: Images  # (N, 3, 32, 32), bytes
    labels: tuple[Integers, ...]  # one array for each of the layout's


def holds_cifar(path: Path) -> bool:
    """Whether `path` is read as CIFAR: a folder with any of its batches, or any tar archive."""
    if not path.is_dir():
        return bundles.is_archive(path)
    pictures = [path / name for layout in _LAYOUTS for name in layout.pictures]
    return any(map(Path.is_file, pictures)) and not any(map(Path.is_dir, pictures))


def read(path: Path) -> RawData:
    """The pictures of the folder or archive, with all names.

    Raises:
        DatasetError: if a file is missing, damaged, does not fit the others, or holds something
            that is no data.
    """
    contents = bundles.read(path, {name for layout in _LAYOUTS for name in layout.files})
    layout = _layout(path, contents)
    names = tuple(_names(path, contents, layout, labels) for labels in layout.labels)
    counts = tuple(map(len, names))
    halves = []
    for files in (layout.train, (layout.test,)):
        batches = [_batch(path / name, contents.pop(name), layout, counts) for name in files]
        columns = zip(*(batch.labels for batch in batches), strict=True)
        images = np.concatenate([batch.images for batch in batches])
        halves.append(_Half(images, tuple(np.concatenate(column) for column in columns)))
    train, test = halves
    return RawData(
        array_split(path, train.images, train.labels[0]),
        array_split(path, test.images, test.labels[0]),
        names[0],
        {} if layout.coarse is None else _superclasses(path, halves, *names),
    )


def _layout(path: Path, contents: Mapping[str, bytes]) -> _Layout:
    """The layout of which there are pictures.

    Raises:
        DatasetError: if there is none, there are several, or some of its files are missing.
    """
    layouts = [layout for layout in _LAYOUTS if not contents.keys().isdisjoint(layout.pictures)]
    if not layouts:
        raise DatasetError(path, "no batches of pictures", _EXPECTED)
    if len(layouts) > 1:
        raise DatasetError(path, "batches of several data sets", "those of one")
    missing = [name for name in layouts[0].files if name not in contents]
    if missing:
        raise DatasetError(path, f"no {', '.join(missing)}", ", ".join(layouts[0].files))
    return layouts[0]


def _names(
    path: Path, contents: Mapping[str, bytes], layout: _Layout, labels: _Labels
) -> tuple[str, ...]:
    """The names of the classes, or of the superclasses.

    Raises:
        DatasetError: if they are not texts that differ.
    """
    source = path / labels.file
    content = contents[labels.file]
    if len(content) > _MOST_NAMES:
        raise DatasetError(source, f"it has {len(content):,} bytes", "some short names")
    found = (
        _field(source, _unpickled(source, content), labels.names_key)
        if layout.pickled
        else content.strip().splitlines()
    )
    texts = tuple(map(_name, found)) if isinstance(found, list) else ()
    if not all(texts) or not 0 < len(texts) == len(set(texts)):
        raise DatasetError(source, "its names are not texts that differ", "a name for each class")
    return tuple(text for text in texts if text is not None)


def _name(found: Any) -> str | None:
    """A name as text; None if it is not one that can be shown."""
    try:
        text = found.decode() if isinstance(found, bytes) else found
    except UnicodeDecodeError:
        return None
    shown = isinstance(text, str) and 0 < len(text.strip()) <= 100 and text.isprintable()
    return text.strip() if shown else None


def _batch(source: Path, content: bytes, layout: _Layout, counts: tuple[int, ...]) -> _Half:
    """The pictures of one file.

    Raises:
        DatasetError: if they are not pictures with a label of each kind.
    """
    found = (_pickled_batch if layout.pickled else _binary_batch)(source, content, layout)
    for labels, count in zip(found.labels, counts, strict=True):
        if len(labels) != len(found.images):
            raise DatasetError(
                source,
                f"{len(found.images)} images but {len(labels)} labels",
                "as many labels as images",
            )
        if int(labels.min()) < 0 or int(labels.max()) >= count:
            raise DatasetError(source, "there are labels without a name", f"0 to {count - 1}")
    return found


def _binary_batch(source: Path, content: bytes, layout: _Layout) -> _Half:
    length = len(layout.labels) + _PIXELS
    if not content or len(content) % length:
        raise DatasetError(source, f"it has {len(content):,} bytes", f"{length:,} for each picture")
    records = np.frombuffer(content, dtype=np.uint8).reshape(-1, length)
    return _Half(
        records[:, -_PIXELS:].reshape(-1, *_SIZE),
        tuple(records[:, labels.at].astype(np.int64) for labels in layout.labels),
    )


def _pickled_batch(source: Path, content: bytes, layout: _Layout) -> _Half:
    fields = _unpickled(source, content)
    try:
        rows = pickles.pixels(_field(source, fields, "data"))
    except ValueError as error:
        raise DatasetError(source, f"its data are {error}", "an array of bytes") from error
    if rows.shape[1] != _PIXELS:
        problem = f"its data have the shape {rows.shape}"
        raise DatasetError(source, problem, f"{_PIXELS:,} bytes for each picture")
    return _Half(
        rows.reshape(-1, *_SIZE),
        tuple(_numbers(source, _field(source, fields, labels.key)) for labels in layout.labels),
    )


def _numbers(source: Path, found: Any) -> Integers:
    if not isinstance(found, list) or not found or not all(type(number) is int for number in found):
        raise DatasetError(source, "its labels are no list of numbers", "a number for each picture")
    return np.array(found, dtype=np.int64)


def _unpickled(source: Path, content: bytes) -> dict[str, Any]:
    try:
        return pickles.read(content)
    except ValueError as error:
        problem = f"it is damaged, or holds something that is no data ({str(error)[:100]})"
        raise DatasetError(source, problem, "a file of CIFAR as its authors made it") from error


def _field(source: Path, fields: Mapping[str, Any], key: str) -> Any:
    if key not in fields:
        raise DatasetError(source, f"it has no {key!r}", "a file of CIFAR as its authors made it")
    return fields[key]


def _superclasses(
    path: Path, halves: list[_Half], fine: tuple[str, ...], coarse: tuple[str, ...]
) -> dict[str, tuple[int, ...]]:
    """The classes in each superclass.

    Raises:
        DatasetError: if pictures of one class are in several superclasses.
    """
    columns = (np.stack(half.labels, axis=1) for half in halves)
    pairs: NDArray[np.int64] = np.unique(np.concatenate(list(columns)), axis=0)
    twice = np.flatnonzero(np.diff(pairs[:, 0]) == 0)
    if len(twice):
        name = fine[int(pairs[twice[0], 0])]
        raise DatasetError(path, f"class {name!r} is in several superclasses", "one for each class")
    return {
        name: tuple(int(label) for label in pairs[pairs[:, 1] == number, 0])
        for number, name in enumerate(coarse)
    }
