"""Reads a data set of picture files: ROOT/{train,test or val}/CLASS/*.jpg, a folder or a zip."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitgrow.demos.rawdata import DatasetError, Images, RawData, Split, Track

_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
_SPLITS = ("train", "test", "val")
_MOST_BYTES = 2 << 30  # of pixels; as float32 they take four times as much
_LAYOUT = "pictures in train/CLASS/ and in test/CLASS/ or val/CLASS/"
_Reader = Callable[[str], bytes]


@dataclass(frozen=True)
class _Picture:
    name: str
    split: str
    label: str


def read(path: Path, *, size: int | None, track: Track) -> RawData:
    """The pictures below `path`, as RGB, resized to `size` or else to the first one's size.

    Raises:
        DatasetError: if there is no training or test picture, or the classes of the two differ.
    """
    with _opened(path) as (names, _):
        pictures = [picture for name in sorted(names) if (picture := _placed(name)) is not None]
    train = [picture for picture in pictures if picture.split == "train"]
    test = [picture for picture in pictures if picture.split == "test"]
    test = test or [picture for picture in pictures if picture.split == "val"]
    for found, name in ((train, "train"), (test, "test or val")):
        if not found:
            raise DatasetError(path, f"no pictures in a {name} folder", _LAYOUT)
    classes = tuple(sorted({picture.label for picture in train}))
    differing = set(classes) ^ {picture.label for picture in test}
    if differing:
        raise DatasetError(
            path,
            f"classes that are only in train or only in test: {', '.join(sorted(differing))}",
            "the same class folders in both",
        )
    width, height = (size, size) if size is not None else _first_size(path, train[0].name)
    stack = _Stack(path, (height, width), track)
    return RawData(stack.split(train, classes), stack.split(test, classes), classes)


@dataclass(frozen=True)
class _Stack:
    """Decodes pictures into one array `(N, 3, H, W)` of bytes."""

    path: Path
    size: tuple[int, int]
    track: Track

    def split(self, pictures: list[_Picture], classes: tuple[str, ...]) -> Split:
        number = {name: index for index, name in enumerate(classes)}
        labels = np.array([number[picture.label] for picture in pictures], dtype=np.int64)
        names = [picture.name for picture in pictures]
        what = f"Reading {pictures[0].split} pictures"
        return Split(labels, lambda indices: self._read([names[at] for at in indices], what))

    def _read(self, names: list[str], what: str) -> Images:
        height, width = self.size
        if len(names) * height * width * 3 > _MOST_BYTES:
            raise DatasetError(
                self.path,
                f"{len(names)} pictures of {width}x{height} pixels do not fit in memory",
                "a smaller --size, or a --limit",
            )
        stack = np.empty((len(names), height, width, 3), dtype=np.uint8)
        with _opened(self.path) as (_, contents):
            for at, name in enumerate(self.track(names, what)):
                stack[at] = _pixels(self.path, name, contents, (width, height))
        return np.moveaxis(stack, 3, 1)


def _placed(name: str) -> _Picture | None:
    """The place of a file; None if it is not a picture of the layout.

    The split may lie one folder down, as in `cifar10/train/cat/0001.jpg`.
    """
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    if hidden or PurePosixPath(name).suffix.lower() not in _SUFFIXES:
        return None
    for at in (0, 1):
        if len(parts) >= at + 3 and parts[at] in _SPLITS:
            return _Picture(name, parts[at], parts[at + 1])
    return None


@contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str], _Reader]]:
    """The names of the files below `path`, and a function that reads one.

    Raises:
        DatasetError: if `path` is not a folder and no sound zip file either.
    """
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        names = [file.relative_to(path).as_posix() for file in files]
        yield names, lambda name: (path / name).read_bytes()
        return
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DatasetError(path, f"it is not a whole zip file ({error})", _LAYOUT) from error
    with archive:
        names = archive.namelist()
        # Nothing is ever extracted, but an archive that tries this deserves no trust.
        escaping = [name for name in names if _escapes(name)]
        if escaping:
            raise DatasetError(
                path, f"the entry {escaping[0]!r} points outside of the archive", _LAYOUT
            )
        yield names, archive.read


def _escapes(name: str) -> bool:
    path = PureWindowsPath(name)  # knows both separators and drive letters
    return ".." in path.parts or bool(path.anchor)


def _first_size(path: Path, name: str) -> tuple[int, int]:
    with _opened(path) as (_, contents), _decoding(path, name):
        return Image.open(io.BytesIO(contents(name))).size


def _pixels(path: Path, name: str, contents: _Reader, size: tuple[int, int]) -> NDArray[np.uint8]:
    with _decoding(path, name), Image.open(io.BytesIO(contents(name))) as image:
        pixels = image.convert("RGB")
        if pixels.size != size:
            pixels = pixels.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(pixels)


@contextmanager
def _decoding(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a decoder's error depends on the format and on the damage
        raise DatasetError(
            path / name, f"the picture cannot be read ({error})", "a whole picture file"
        ) from error
