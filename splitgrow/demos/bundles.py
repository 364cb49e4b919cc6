"""Reads some files of a folder or of a tar archive, of which nothing is ever extracted."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from splitgrow.demos.rawdata import DatasetError

SUFFIXES = (".tar.gz", ".tgz", ".tar")
_MOST_BYTES = 1 << 28  # of a file; the largest of CIFAR has 155 million
_MOST_IN_ALL = 1 << 30  # of an archive once it is uncompressed
_CHUNK = 1 << 20


def is_archive(path: Path) -> bool:
    """Whether the path has a name as tar archives have."""
    return path.name.lower().endswith(SUFFIXES)


def read(path: Path, wanted: Iterable[str]) -> dict[str, bytes]:
    """Those of the files `wanted` that are in the folder, or in whichever folder of the archive.

    Raises:
        DatasetError: if the archive is damaged, holds a file twice, or a file is too large.
    """
    names = frozenset(wanted)
    if not is_archive(path):
        return {name: _content(path / name) for name in names if (path / name).is_file()}
    try:
        with gzip.open(path) if _is_gzip(path) else path.open("rb") as file:
            return _members(path, _Wary(cast("IO[bytes]", file)), names)
    except (OSError, EOFError, zlib.error, tarfile.TarError, ValueError) as error:
        raise DatasetError(path, f"it is damaged ({error})", "a whole tar archive") from error


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise DatasetError(path, f"it cannot be read ({error})", "a readable file") from error
    _check_size(path, len(content))
    return content


def _check_size(source: Path, size: int) -> None:
    if size > _MOST_BYTES:
        raise DatasetError(source, "it is too large", f"at most {_MOST_BYTES:,} bytes")


class _Wary:
    """A file to read an archive from, which gives no more than an honest one needs."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _CHUNK or self._file.tell() + size > _MOST_IN_ALL:
            raise ValueError("it asks for more bytes than such data have")
        return self._file.read(size)

    def seek(self, position: int) -> int:
        if position > _MOST_IN_ALL:
            raise ValueError("it has more bytes than such data have")
        return self._file.seek(position)

    def tell(self) -> int:
        return self._file.tell()


def _members(path: Path, file: Any, names: frozenset[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            if name not in names or not member.isreg() or member.issparse():
                continue
            if name in found:
                raise DatasetError(path, f"two files {name}", "one")
            _check_size(path / member.name, member.size)
            found[name] = _taken(archive, member)
    return found


def _taken(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    assert file is not None, "regular files can be read"
    with file:
        content = b"".join(iter(lambda: file.read(_CHUNK), b""))
    if len(content) != member.size:
        raise ValueError(f"{member.name} ends before it should")
    return content
