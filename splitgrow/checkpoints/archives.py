"""Files of tensors and text that are written whole or not at all, and are not believed when read.

The format is safetensors', which holds no code. A file carries a checksum over all its bytes; large
contents are split over several files, whose names and checksums the first one has.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import torch
from torch import Tensor

from splitgrow.checkpoints.files import TensorFile, opened_file, refused
from splitgrow.errors import CheckpointError
from splitgrow.utils.json_records import read_record

DIGEST, SHARDS, COMPLEX = "sha256", "shards", "complex"
"""Names in a file's metadata."""
_TRIES = 100
"""How many other files may take the place of one while its further files are being opened."""


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
        self._taken: set[str] = set()
        with ExitStack() as stack:
            with refused(f"cannot read {path}"):
                self._files = _of_one_save(path, stack)
            self.metadata = self._files[0].metadata
            self.table = _table(self._files, path)
            self._complex = self._complex_ones()
            self._open = stack.pop_all()

    def __enter__(self) -> Archive:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()

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
        """One of the tensors, on the CPU, in memory of its own.

        Raises:
            CheckpointError: If there is none of that name, or the file has changed.
        """
        if name not in self.table:
            raise CheckpointError(f"{self.path} has no tensor `{name}`")
        with refused(f"cannot read {self.path}"):
            found = self._files[self.table[name].file].read(name)
        return torch.view_as_complex(found) if name in self._complex else found

    def take(self, name: str) -> Tensor:
        """One of the tensors, each only once.

        So a file that names a tensor many times costs no more than it holds.

        Raises:
            CheckpointError: If there is none of that name, or it was taken already.
        """
        if name in self._taken:
            raise CheckpointError(f"{self.path} uses the tensor `{name}` twice")
        self._taken.add(name)
        return self.tensor(name)

    def stored(self, name: str) -> Stored | None:
        """The description of a tensor; None if there is none of that name."""
        found = self.table.get(name)
        if found is None or name not in self._complex:
            return found
        return Stored(torch.complex128, found.shape[:-1], found.file)


def _of_one_save(path: Path, stack: ExitStack) -> list[TensorFile]:
    """All files of an archive, each found whole, open as long as the stack.

    The first names the others. If one of these is gone since another save has replaced them all,
    the files are opened anew. An open file stays readable when it is removed.

    Raises:
        CheckpointError: If they cannot be read, or are not of one save.
    """
    for _ in range(_TRIES):
        with ExitStack() as trial:
            first = trial.enter_context(opened_file(path))
            whole = TensorFile(first, path)
            shards = shards_in(whole.metadata, path)
            paths = [path.with_name(shard.name) for shard in shards]
            try:
                further = [trial.enter_context(opened_file(each)) for each in paths]
            except FileNotFoundError as error:
                if not _is_replaced(first, path):
                    raise CheckpointError(
                        f"{path} is not whole: {error.filename}, which belongs to it, is missing"
                    ) from error
                continue
            files = [whole, *map(TensorFile, further, paths)]
            for shard, each, file in zip(shards, paths, files[1:], strict=True):
                if file.digest != shard.sha256:
                    raise CheckpointError(f"{each} is not the file that belongs to {path}")
            stack.push(trial.pop_all())
            return files
    raise CheckpointError(f"{path} was replaced {_TRIES} times while it was opened; load it again")


def _is_replaced(file: IO[bytes], path: Path) -> bool:
    return not os.path.samestat(os.fstat(file.fileno()), path.stat())


def _table(files: list[TensorFile], path: Path) -> dict[str, Stored]:
    """The tensors of all files.

    Raises:
        CheckpointError: If two files have one of the same name.
    """
    table: dict[str, Stored] = {}
    for index, file in enumerate(files):
        for name, place in file.places.items():
            if name in table:
                raise CheckpointError(f"{path} has `{name}` in two of its files")
            table[name] = Stored(place.dtype, place.shape, index)
    return table


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
