"""Files of tensors and text that are written whole or not at all, and are not believed when read.

The format is safetensors', which holds no code. A file carries a checksum over all its bytes; large
contents are split over several files, whose names and checksums the first one has.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from splitgrow.errors import CheckpointError
from splitgrow.utils.json_records import read_record

DIGEST, SHARDS, COMPLEX = "sha256", "shards", "complex"
"""Names in a file's metadata."""
NO_DIGEST = "0" * 64
LARGEST_HEADER = 100_000_000  # as the safetensors library has it

STORED_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3": torch.float8_e4m3fn,
}


@dataclass(frozen=True)
class Shard:
    """One of the further files that hold tensors.

    Attributes:
        name: Its name, in the directory of the first file.
        sha256: Its checksum.
    """

    name: str
    sha256: str


@dataclass(frozen=True)
class Stored:
    """A tensor as the header of a file describes it.

    Attributes:
        dtype: Its dtype.
        shape: Its shape.
        file: The number of the file that has it, from 0.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    file: int

    @property
    def size(self) -> int:
        """Its number of elements."""
        return math.prod(self.shape)


class Archive:
    """A file that was found whole, open for reading; a context manager.

    Attributes:
        path: The file.
        metadata: Its texts.
        table: Its tensors.

    Args:
        path: The file.

    Raises:
        CheckpointError: If there is no such file, or it is damaged or of another format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path = Path(os.path.realpath(path))
        self.table: dict[str, Stored] = {}
        self._open = ExitStack()
        self._files: list[Any] = []
        self._taken: set[str] = set()
        try:
            self.metadata = self._add(path, None)
            shards = shards_in(self.metadata, path)
            for shard in shards:
                self._add(path.with_name(shard.name), shard.sha256)
            self._complex = self._complex_ones()
        except BaseException:
            self._open.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

    def _add(self, path: Path, expected: str | None) -> dict[str, str]:
        """Takes in one of the files, once it was found whole.

        Raises:
            CheckpointError: If it was not.
        """
        with refused(f"cannot read {path}"):
            if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
                raise CheckpointError(f"cannot read {path}: it is no file")
            with path.open("rb") as file:
                header, digest = read_header(file, path)
            if expected is not None and digest != expected:
                raise CheckpointError(f"{path} is not the file that belongs to {self.path}")
            metadata: dict[str, str] = header.pop("__metadata__")
            for name, entry in header.items():
                if name in self.table:
                    raise CheckpointError(f"{path} has `{name}`, which another file has too")
                self.table[name] = _stored(entry, len(self._files), path)
            opened = safe_open(path, framework="pt")
            self._files.append(self._open.enter_context(opened))
        return metadata

    def _complex_ones(self) -> frozenset[str]:
        """The names of the tensors of pairs that are complex numbers.

        Raises:
            CheckpointError: If one is of something else.
        """
        names = _listed(self.metadata.get(COMPLEX, "[]"), self.path)
        for name in names:
            stored = self.table.get(name) if isinstance(name, str) else None
            if stored is None or stored.dtype != torch.float64 or stored.shape[-1:] != (2,):
                raise CheckpointError(f"{self.path} has no pairs of numbers as {name!r}")
        return frozenset(names)

    @property
    def elements(self) -> int:
        """The number of elements of all tensors."""
        return sum(stored.size for stored in self.table.values())

    def tensor(self, name: str) -> Tensor:
        """One of the tensors, on the CPU, in the memory of the file.

        Raises:
            CheckpointError: If there is none of that name.
        """
        if name not in self.table:
            raise CheckpointError(f"{self.path} has no tensor `{name}`")
        stored = self.table[name]
        with refused(f"cannot read {self.path}"):
            found: Tensor = self._files[stored.file].get_tensor(name)
        if found.dtype != stored.dtype or tuple(found.shape) != stored.shape:
            raise CheckpointError(f"{self.path} says two things of `{name}`")
        if name not in self._complex:
            return found
        return torch.view_as_complex(found.clone())  # a file's memory may lie askew for them

    def take(self, name: str) -> Tensor:
        """One of the tensors, in memory of its own; each only once.

        So a file that names a tensor many times costs no more than it holds.

        Raises:
            CheckpointError: If there is none of that name, or it was taken already.
        """
        if name in self._taken:
            raise CheckpointError(f"{self.path} uses the tensor `{name}` twice")
        self._taken.add(name)
        return self.tensor(name).clone()

    def stored(self, name: str) -> Stored | None:
        """The description of a tensor; None if there is none of that name."""
        found = self.table.get(name)
        if found is None or name not in self._complex:
            return found
        return Stored(torch.complex128, found.shape[:-1], found.file)


@contextmanager
def refused(what: str) -> Iterator[None]:
    """Has errors of the system and of the format be raised as another.

    Raises:
        CheckpointError: If there is one.
    """
    try:
        yield
    except (OSError, SafetensorError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise CheckpointError(f"{what}: {reason}") from error


def read_header(file: IO[bytes], path: Path) -> tuple[dict[str, Any], str]:
    """The header of a file, and its checksum, once it was compared with the file's bytes.

    Raises:
        CheckpointError: If the file is damaged or of another format.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, LARGEST_HEADER):
        raise CheckpointError(f"{path} is no checkpoint: it is cut short, or of another format")
    raw = file.read(length)
    found = re.findall(rb'"sha256":"([0-9a-f]{64})"', raw)
    if len(found) != 1:
        raise CheckpointError(f"{path} is no checkpoint of splitgrow: it has no checksum")
    digest = found[0].decode()
    if digest_of(file, 8 + raw.index(b'"sha256":"') + 10) != digest:
        raise CheckpointError(
            f"{path} is damaged: its checksum is not that of its contents{_older(path)}"
        )
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    texts = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise CheckpointError(f"{path} is damaged: its header is none")
    return header, digest


def digest_of(file: IO[bytes], place: int) -> str:
    """The checksum of a file: SHA-256 of its bytes, with zeros where the checksum stands."""
    digest = hashlib.sha256()
    file.seek(0)
    digest.update(file.read(place))
    digest.update(NO_DIGEST.encode())
    file.seek(place + len(NO_DIGEST))
    while part := file.read(1 << 20):
        digest.update(part)
    return digest.hexdigest()


def numbered(path: Path, number: int) -> Path:
    """Where an older file is kept; 0 for the newest."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}") if number else path


def _older(path: Path) -> str:
    older = numbered(path, 1)
    return f"; {older} is older" if older.is_file() else ""


def shards_in(metadata: Mapping[str, str], path: Path) -> list[Shard]:
    """The further files of an archive.

    Raises:
        CheckpointError: If one is not in the same directory, or the list is none.
    """
    listed = _listed(metadata.get(SHARDS, "[]"), path)
    try:
        shards = [read_record(Shard, item, "a shard") for item in listed]
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if len({shard.name for shard in shards}) < len(shards):
        raise CheckpointError(f"{path} names one of its files twice")
    for shard in shards:
        if not re.fullmatch(r"[^/\\\0]+-[0-9a-f]{8}-\d{5}-of-\d{5}\.safetensors", shard.name):
            raise CheckpointError(f"{path} names {shard.name!r} as one of its files")
    return shards


def _listed(text: str, path: Path) -> list[Any]:
    try:
        listed = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(listed, list):
        raise CheckpointError(f"{path} is damaged: {listed!r} is no list")
    return listed


def _stored(entry: Any, file: int, path: Path) -> Stored:
    if isinstance(entry, dict):
        dtype, shape = STORED_DTYPES.get(str(entry.get("dtype"))), entry.get("shape")
        if isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape) and dtype:
            return Stored(dtype, tuple(shape), file)
    raise CheckpointError(f"{path} has a tensor of a type that this splitgrow does not know")
