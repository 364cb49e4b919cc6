"""Reads a data set of picture files: ROOT/{train,test or val}/CLASS/*.jpg, a folder or a zip.

With several folders in between, ROOT/TASK/train/CLASS/*.jpg, each of them is a superclass: classes
of one name in two of them are two classes. Where no folder is called train, test or val, the layout
is ROOT/TASK/CLASS/*.jpg, and a fifth of each class's pictures are for tests, always the same.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from splitgrow.demos.rawdata import (
    DatasetError,
    Images,
    RawData,
    Room,
    Split,
    Track,
    refuse_other_packing,
)

_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
_SPLITS = ("train", "test", "val")
_BYTES_A_PIXEL = 8  # once a file is decoded, in its own mode and as RGB
_LAYOUT = (
    "pictures in train/CLASS/ and in test/CLASS/ or val/CLASS/, or in TASK/CLASS/ for each task"
)
_TESTED = 5  # one of so many pictures of a class is for tests, where no folder says which
_Reader = Callable[[str], bytes]


@dataclass(frozen=True)
class _Picture:
    name: str
    top: str  # the folder that the split lies in, below the root; or empty
    split: str
    label: str


def read(path: Path, *, size: int | None, track: Track, room: Room) -> RawData:
    """The pictures below `path`, as RGB, resized to `size` or else to the first one's size.

    Raises:
        DatasetError: if there is no training or test picture, the classes of the two differ, or
            they do not fit in memory.
    """
    with _opened(path, room) as (names, _):
        pictures = [picture for name in sorted(names) if (picture := _placed(name)) is not None]
        pictures = pictures or _tasks_of(path, sorted(names))
    _refuse_empty_folders(path, pictures)
    pictures, tops = _told_apart(path, pictures)
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
    width, height = (size, size) if size is not None else _first_size(path, train[0].name, room)
    stack = _Stack(path, (height, width), track, room)
    halves = stack.split(train, classes), stack.split(test, classes)
    return RawData(*halves, classes, _members(classes, tops), folders=bool(tops))


def _tasks_of(path: Path, names: list[str]) -> list[_Picture]:
    """The pictures of the layout TASK/CLASS/*.jpg, of which some are for tests.

    Raises:
        DatasetError: if a class has one picture, which cannot be both.
    """
    places: dict[tuple[str, str], list[str]] = {}
    for name in names:
        parts = PurePosixPath(name).parts
        if len(parts) >= 3 and _is_picture(name):
            places.setdefault((parts[0], parts[1]), []).append(name)
    found = []
    for (task, label), own in places.items():
        if len(own) < 2:
            raise DatasetError(path / task / label, "one picture", "at least two, one for tests")
        drawn = sorted(own, key=lambda name: (zlib.crc32(name.encode()), name))
        tested = -(-len(own) // _TESTED)
        for at, name in enumerate(drawn):
            found.append(_Picture(name, task, "test" if at < tested else "train", label))
    return sorted(found, key=lambda picture: picture.name)


def _refuse_empty_folders(path: Path, pictures: list[_Picture]) -> None:
    """Makes sure that no folder of a class or task is empty, which would be left out unseen.

    Raises:
        DatasetError: if one is.
    """
    if not path.is_dir() or not pictures:
        return
    depths = {len(PurePosixPath(picture.name).parts) - 1 for picture in pictures}
    filled = {str(up) for picture in pictures for up in PurePosixPath(picture.name).parents}
    for folder in sorted(path.rglob("*")):
        inside = folder.relative_to(path)
        hidden = any(part.startswith((".", "__MACOSX")) for part in inside.parts)
        if hidden or not folder.is_dir() or len(inside.parts) > max(depths):
            continue
        if inside.as_posix() not in filled and not any(
            each.is_file() for each in folder.rglob("*")
        ):
            raise DatasetError(folder, "the folder is empty", _LAYOUT)


def _told_apart(path: Path, pictures: list[_Picture]) -> tuple[list[_Picture], tuple[str, ...]]:
    """The pictures, with classes of their own for each of several folders, and these folders.

    Raises:
        DatasetError: if there are splits at the root and in a folder.
    """
    tops = tuple(sorted({picture.top for picture in pictures}))
    if len(tops) < 2:
        return pictures, ()
    if not tops[0]:
        raise DatasetError(path, f"a split at its root and one in {tops[1]}", "one of the two")
    return [replace(each, label=f"{each.top}/{each.label}") for each in pictures], tops


def _members(classes: tuple[str, ...], tops: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    inside = {top: tuple(at for at, n in enumerate(classes) if _under(n, top)) for top in tops}
    return {top: members for top, members in inside.items() if members}


def _under(label: str, top: str) -> bool:
    return label.partition("/")[0] == top


@dataclass(frozen=True)
class _Stack:
    """Decodes pictures into one array `(N, 3, H, W)` of bytes."""

    path: Path
    size: tuple[int, int]
    track: Track
    room: Room

    def split(self, pictures: list[_Picture], classes: tuple[str, ...]) -> Split:
        number = {name: index for index, name in enumerate(classes)}
        labels = np.array([number[picture.label] for picture in pictures], dtype=np.int64)
        names = [picture.name for picture in pictures]
        what = f"Reading {pictures[0].split} pictures"
        return Split(labels, lambda indices: self._read([names[at] for at in indices], what))

    def _read(self, names: list[str], what: str) -> Images:
        height, width = self.size
        source = f"{self.path} ({len(names)} pictures of {width}x{height} pixels)"
        self.room.take(source, len(names) * height * width * 3)
        stack = np.empty((len(names), height, width, 3), dtype=np.uint8)
        with _opened(self.path, self.room) as (_, contents):
            for at, name in enumerate(self.track(names, what)):
                stack[at] = _pixels(_Source(self.path, name, contents, self.room), (width, height))
        return np.moveaxis(stack, 3, 1)


def _placed(name: str) -> _Picture | None:
    """The place of a file; None if it is not a picture of the layout.

    The split may lie one folder down, as in `cifar10/train/cat/0001.jpg`.
    """
    parts = PurePosixPath(name).parts
    if not _is_picture(name):
        return None
    for at in (0, 1):
        if len(parts) >= at + 3 and parts[at] in _SPLITS:
            return _Picture(name, parts[0] if at else "", parts[at], parts[at + 1])
    return None


def _is_picture(name: str) -> bool:
    parts = PurePosixPath(name).parts
    hidden = any(part.startswith((".", "__MACOSX")) for part in parts)
    return not hidden and PurePosixPath(name).suffix.lower() in _SUFFIXES


@contextmanager
def _opened(path: Path, room: Room) -> Iterator[tuple[list[str], _Reader]]:
    """The names of the files below `path`, and a function that reads one.

    Raises:
        DatasetError: if `path` is not a folder and no sound zip file either.
    """
    if path.is_dir():
        files = (file for file in path.rglob("*") if file.is_file())
        names = [file.relative_to(path).as_posix() for file in files]

        def content(name: str) -> bytes:
            room.check(path / name, (path / name).stat().st_size)
            with (path / name).open("rb") as file:
                return room.read(path / name, file)

        yield names, content
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

        def unpacked(name: str) -> bytes:
            member = archive.getinfo(name)
            refuse_other_packing(path / name, member)
            room.check(path / name, member.file_size)
            with archive.open(member) as file:
                return room.read(path / name, file)

        yield names, unpacked


def _escapes(name: str) -> bool:
    path = PureWindowsPath(name)  # knows both separators and drive letters
    return ".." in path.parts or bool(path.anchor)


@dataclass(frozen=True)
class _Source:
    """A picture file."""

    path: Path
    name: str
    contents: _Reader
    room: Room

    def opened(self) -> Image.Image:
        """The picture, not decoded yet.

        Raises:
            DatasetError: if its pixels would not fit.
        """
        image = Image.open(io.BytesIO(self.contents(self.name)))
        width, height = image.size
        self.room.check(self.path / self.name, width * height * _BYTES_A_PIXEL)
        return image


def _first_size(path: Path, name: str, room: Room) -> tuple[int, int]:
    with _opened(path, room) as (_, contents), _decoding(path, name):
        return _Source(path, name, contents, room).opened().size


def _pixels(source: _Source, size: tuple[int, int]) -> NDArray[np.uint8]:
    with _decoding(source.path, source.name), source.opened() as image:
        pixels = image.convert("RGB")
        if pixels.size != size:
            pixels = pixels.resize(size, Image.Resampling.BILINEAR)
        return np.asarray(pixels)


@contextmanager
def _decoding(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:  # a decoder's error depends on the format and on the damage
        raise DatasetError(
            path / name, f"the picture cannot be read ({error})", "a whole picture file"
        ) from error
