"""One file of tensors, opened once: found whole, then read by the tensor.

All reads are of the file that was opened, whatever takes its name later. The checksum is that of
the bytes as they were read, and a tensor is compared with it again when it is read. So a file that
another program changes meanwhile is refused, and never read as a mixture.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from splitgrow.errors import CheckpointError

if TYPE_CHECKING:
    from hashlib import _Hash

NO_DIGEST = "0" * 64
LARGEST_HEADER = 100_000_000  # as the safetensors library has it
_PART = 1 << 20
_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

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
class Region:
    """A tensor as the header of a file describes it.

    Attributes:
        dtype: Its dtype.
        shape: Its shape.
        begin: The place of its first byte, behind the header.
        end: The place behind its last byte.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """A file of tensors and texts that was found whole.

    Attributes:
        digest: Its checksum.
        metadata: Its texts.
        places: Its tensors.

    Args:
        file: The file, open, as `opened_file` gives it. The caller closes it.
        path: Its path, for messages.

    Raises:
        CheckpointError: If it is damaged or of another format.
        OSError: If it cannot be read.
    """

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path = file, path
        size = os.fstat(file.fileno()).st_size
        begin = file.read(8)
        length = int.from_bytes(begin, "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise CheckpointError(f"{path} is no checkpoint: it is cut short, or of another format")
        raw = file.read(length)
        found = re.findall(rb'"sha256":"([0-9a-f]{64})"', raw)
        if len(found) != 1:
            raise CheckpointError(f"{path} is no checkpoint of splitgrow: it has no checksum")
        self.digest: str = found[0].decode()
        self._data = 8 + length
        problem, boundaries = None, list[int]()
        try:
            self.metadata, self.places = _parsed(raw, size - self._data, path)
            boundaries = sorted({place.begin for place in self.places.values()})
        except CheckpointError as error:  # damage of the bytes is the better reason, if there is
            problem = error
        place = raw.index(b'"sha256":"') + 10
        head = begin + raw[:place] + NO_DIGEST.encode() + raw[place + len(NO_DIGEST) :]
        states = hashed(head, file, boundaries)
        if states[-1].hexdigest() != self.digest:
            raise CheckpointError(
                f"{path} is damaged: its checksum is not that of its contents{_older(path)}"
            )
        if problem is not None:
            raise problem
        self._states = dict(zip([*boundaries, size - self._data], states, strict=True))

    def read(self, name: str) -> Tensor:
        """One of the tensors, on the CPU, in memory of its own.

        Raises:
            CheckpointError: If the file has changed since it was opened.
            OSError: If it cannot be read.
        """
        place = self.places[name]
        tensor = torch.empty(place.shape, dtype=place.dtype, device="cpu")
        if place.end > place.begin:
            memory = (ctypes.c_ubyte * (place.end - place.begin)).from_address(tensor.data_ptr())
            self._read_into(memoryview(memory), place)
            if sys.byteorder == "big":
                storage: Any = tensor.untyped_storage()
                storage.byteswap(place.dtype)
        return tensor

    def _read_into(self, memory: memoryview, place: Region) -> None:
        self._file.seek(self._data + place.begin)
        state, count = self._states[place.begin].copy(), 0
        for at in range(0, len(memory), _PART):
            part = memory[at : at + _PART]
            count += self._file.readinto(part)  # type: ignore[attr-defined]
            state.update(part)
        if count < len(memory) or state.digest() != self._states[place.end].digest():
            raise CheckpointError(f"{self._path} was changed while it was read")


def hashed(head: bytes, file: IO[bytes], boundaries: Sequence[int]) -> list[_Hash]:
    """The checksum of a file, as far as it has come at places: SHA-256, with zeros for itself.

    Args:
        head: The bytes before the place where the file is, with zeros where the checksum stands.
        file: The file, at the end of its header.
        boundaries: Places behind the header, in their order.

    Returns:
        The checksum up to each of the places, and that of the whole file.
    """
    state = hashlib.sha256(head)
    states = []
    for before, place in pairwise([0, *boundaries]):
        _pass(file, state, place - before)
        states.append(state.copy())
    while _pass(file, state, _PART):
        pass
    return [*states, state]


def _pass(file: IO[bytes], state: _Hash, count: int) -> int:
    """Adds the next bytes of a file to a checksum; returns how many there were."""
    left = count
    while left and (part := file.read(min(left, _PART))):
        state.update(part)
        left -= len(part)
    return count - left


# -- the header ----------------------------------------------------------------------------------


def _parsed(raw: bytes, size: int, path: Path) -> tuple[dict[str, str], dict[str, Region]]:
    """The texts and tensors of a header.

    Args:
        raw: The header.
        size: The number of bytes behind it.
        path: The file, for messages.

    Raises:
        CheckpointError: If it is none, or does not describe these bytes.
    """
    try:
        header = json.loads(raw, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    texts = header.pop("__metadata__", None) if isinstance(header, dict) else None
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise CheckpointError(f"{path} is damaged: its header is none")
    places = {name: _place(entry, path) for name, entry in header.items()}
    ordered = sorted((place.begin, place.end) for place in places.values())
    ends = [0, *(end for _, end in ordered)]
    if [begin for begin, _ in ordered] != ends[:-1] or ends[-1] != size:
        raise CheckpointError(f"{path} is damaged: its tensors are not as long as the file")
    return texts, places


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a header.

    Raises:
        ValueError: If it has a key twice, and so says two things, of which readers take either.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header has a key twice")
    return found


def _place(entry: Any, path: Path) -> Region:
    """A tensor of a header.

    Raises:
        CheckpointError: If it is none.
    """
    given: Mapping[str, Any] = entry if isinstance(entry, dict) else {}
    dtype = STORED_DTYPES.get(str(given.get("dtype")))
    shape: Any = given.get("shape")
    offsets: Any = given.get("data_offsets")
    if not (dtype and _sizes(shape) and _sizes(offsets) and len(offsets) == 2):
        raise CheckpointError(f"{path} has a tensor of a type that this splitgrow does not know")
    begin, end = offsets
    counted = math.prod(n for n in shape if n) * dtype.itemsize
    if end - begin != (0 if 0 in shape else counted) or counted >= 2**63:
        raise CheckpointError(f"{path} is damaged: a tensor is of other than its shape")
    return Region(dtype, tuple(shape), begin, end)


def _sizes(numbers: Any) -> bool:
    return isinstance(numbers, list) and all(type(n) is int and n >= 0 for n in numbers)


# -- paths ---------------------------------------------------------------------------------------


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


def check_regular(path: Path) -> bool:
    """Makes sure that a path, or the path that it leads to, is a regular file or free.

    A pipe, a socket, a device or a directory is nothing that a checkpoint may take the place of,
    and opening one may wait for another process or act on a machine.

    Returns:
        Whether there is a file.

    Raises:
        CheckpointError: If there is something else.
        OSError: If it cannot be found out.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return False
    _refuse_special(mode, path)
    return True


def _refuse_special(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise CheckpointError(f"{path} is {kind}, not a file; give another path")


def opened_file(path: Path) -> IO[bytes]:
    """A regular file, open for reading.

    Raises:
        CheckpointError: If it is something else.
        OSError: If it is not there or cannot be read.
    """
    check_regular(path)

    def open_at_once(name: str, flags: int) -> int:
        # A pipe that has come since does not make this wait, either.
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    file = open(path, "rb", opener=open_at_once)  # noqa: SIM115 - the caller closes it
    try:
        _refuse_special(os.fstat(file.fileno()).st_mode, path)
    except BaseException:
        file.close()
        raise
    return file


def numbered(path: Path, number: int) -> Path:
    """Where an older file is kept; 0 for the newest."""
    return path.with_name(f"{path.stem}.{number}{path.suffix}") if number else path


def _older(path: Path) -> str:
    older = numbered(path, 1)
    return f"; {older} is older" if older.is_file() else ""
