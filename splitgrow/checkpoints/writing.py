"""Writing archives: aside, down to the disk, then renamed, so that no moment has half a file."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from splitgrow.checkpoints.archives import (
    COMPLEX,
    DIGEST,
    LARGEST_HEADER,
    NO_DIGEST,
    SHARDS,
    STORED_DTYPES,
    Shard,
    digest_of,
    numbered,
    read_header,
    refused,
    shards_in,
)
from splitgrow.errors import CheckpointError
from splitgrow.utils.json_records import written

try:
    import fcntl
except ImportError:  # not on Windows; there the rest of a killed process stays
    fcntl = None  # type: ignore[assignment]

_KNOWN = frozenset(STORED_DTYPES.values())


def write_archive(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    keep: int,
    largest: int,
) -> None:
    """Writes tensors and texts to a file, whole or not at all.

    Args:
        path: The file. One that is there is replaced at the end, in one step.
        tensors: The tensors. No two of them may be one.
        metadata: The texts.
        keep: How many files are kept: this one, and those that were there before.
        largest: The number of bytes of tensors in one file; more bytes go to further files.

    Raises:
        CheckpointError: If it cannot be written. An existing file is untouched.
    """
    path = Path(os.path.realpath(path))
    for name, tensor in tensors.items():
        _check_plain(name, tensor)
    parts = _parts(tensors, largest)
    texts = {**metadata, COMPLEX: json.dumps(_complex(tensors))}
    with refused(f"cannot save {path}"), _alone(path):
        _clear(path)
        with _written(path, parts[1:]) as shards:
            texts[SHARDS] = json.dumps(written(shards))
            with _aside(path) as aside:
                _write(aside, parts[0], texts)
                _rotate(path, keep)
                aside.replace(path)
                sync_directory(path.parent)
        with suppress(OSError, CheckpointError):  # the new file is there already
            _remove_unused(path)


def write_plain(path: Path, tensors: Mapping[str, Any], metadata: Mapping[str, str]) -> None:
    """Writes a state_dict to one file of safetensors, as others read it.

    Raises:
        CheckpointError: If it cannot be written, or has something else than tensors.
    """
    others = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{', '.join(others[:3])} of the state_dict are no tensors")
    write_archive(path, tensors, metadata, keep=1, largest=sys.maxsize)


def write_aside(path: Path, write: Callable[[Path], None]) -> None:
    """Has a file be written aside, down to the disk, and take its name in the end.

    Args:
        path: The file.
        write: Writes to the path that it is given.

    Raises:
        CheckpointError: If it cannot be written. An existing file is untouched.
    """
    path = Path(os.path.realpath(path))
    with refused(f"cannot write {path}"), _aside(path) as aside:
        aside = aside.with_suffix(path.suffix)
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
        sync_directory(path.parent)


def _check_plain(name: str, tensor: Tensor) -> None:
    """Makes sure that a tensor can be written.

    Raises:
        CheckpointError: If it cannot.
    """
    if hasattr(tensor, "placements"):
        raise CheckpointError(
            f"`{name}` is spread over several processes; use splitgrow.distributed.save"
        )
    if tensor.is_meta:
        raise CheckpointError(f"`{name}` lies on the meta device: it has no values to save")
    known = tensor.dtype in _KNOWN or tensor.dtype is torch.complex128
    if not known or tensor.layout is not torch.strided or tensor.is_quantized:
        raise CheckpointError(
            f"`{name}` is a {tensor.layout} tensor of {tensor.dtype}: no checkpoint can hold that"
        )


def _complex(tensors: Mapping[str, Tensor]) -> list[str]:
    return [name for name, tensor in tensors.items() if tensor.dtype is torch.complex128]


def _parts(tensors: Mapping[str, Tensor], largest: int) -> list[dict[str, Tensor]]:
    """The tensors of each file; all in the first if they fit, otherwise none."""
    if sum(tensor.nbytes for tensor in tensors.values()) <= largest:
        return [dict(tensors)]
    parts: list[dict[str, Tensor]] = [{}, {}]
    size = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > largest:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    return parts


@contextmanager
def _written(path: Path, parts: list[dict[str, Tensor]]) -> Iterator[list[Shard]]:
    """Further files of an archive; they go again if the block fails to name them."""
    token, shards = secrets.token_hex(4), []
    try:
        for index, part in enumerate(parts, 1):
            name = f"{path.stem}-{token}-{index:05d}-of-{len(parts):05d}.safetensors"
            with _aside(path) as aside:
                shards.append(Shard(name, _write(aside, part, {})))
                aside.replace(path.with_name(name))
        if parts:
            sync_directory(path.parent)
        yield shards
    except BaseException:
        with suppress(OSError, CheckpointError):
            _remove_unused(path)
        raise


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Where a file is written before it takes its name: in a directory beside it, which goes again.

    The directory is locked as long as it is in use; that tells it from the directory of a killed
    process.
    """
    directory = path.with_name(f"{_beginning(path)}{secrets.token_hex(4)}")
    directory.mkdir()
    try:
        with _locked(directory):
            yield directory / "file"
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """A lock on a directory; it ends with the process.

    Raises:
        BlockingIOError: If another process has it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        _lock(descriptor, fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits until no other process writes this file, whose further files would be taken for unused.

    The lock is on a directory, which is removed again; a process that finds it gone makes it anew.
    """
    if fcntl is None:
        yield
        return
    directory = path.with_name(f"{_beginning(path)}lock")
    while True:
        directory.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            descriptor = os.open(directory, os.O_RDONLY)
            try:
                _lock(descriptor, 0)
                if os.path.samestat(os.fstat(descriptor), directory.stat()):
                    break
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)
    try:
        yield
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(descriptor)


def _lock(descriptor: int, how: int) -> None:
    """Locks an open file, as far as its file system has locks.

    Raises:
        OSError: If it cannot be locked now.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | how)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


def _beginning(path: Path) -> str:
    """How names of temporary files begin: short, since the path's own may be long."""
    return f".splitgrow-{hashlib.sha256(path.name.encode()).hexdigest()[:8]}-"


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Writes one file down to the disk; returns its checksum.

    Raises:
        CheckpointError: If there is more text in it than a file can hold.
    """
    dense: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = _dense(tensor)
        dense[name] = plain.clone() if plain.numel() and plain.data_ptr() in seen else plain
        seen.add(plain.data_ptr())
    path.touch()
    mode = path.stat().st_mode  # as the user wants files to be; the library makes its own
    save_file(dense, path, {**metadata, DIGEST: NO_DIGEST})
    del dense
    path.chmod(mode)
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > LARGEST_HEADER:
            raise CheckpointError(
                f"a file cannot hold {length:,} bytes of text; put long lists into tensors"
            )
        header = file.read(length)
        place = 8 + header.index(f'"{DIGEST}":"{NO_DIGEST}"'.encode()) + len(DIGEST) + 4
        digest = digest_of(file, place)
        file.seek(place)
        file.write(digest.encode())
        file.flush()
        os.fsync(file.fileno())
    return digest


def _dense(tensor: Tensor) -> Tensor:
    """A tensor's values on the CPU, in storage of their own."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.dtype is torch.complex128:
        tensor = torch.view_as_real(tensor)
    plain = tensor.as_subclass(Tensor).cpu().contiguous()
    return plain if plain.untyped_storage().nbytes() == plain.nbytes else plain.clone()


def _rotate(path: Path, keep: int) -> None:
    """Gives the files that are there the numbers of older ones; the newest keeps its name, too."""
    if keep < 2 or not path.exists():
        return
    for number in range(keep - 1, 1, -1):
        if numbered(path, number - 1).exists():
            numbered(path, number - 1).replace(numbered(path, number))
    older = numbered(path, 1)
    older.unlink(missing_ok=True)
    try:  # until the new one takes its place, the file is there under both names
        os.link(path, older)
    except OSError:  # a file system without such names
        with _aside(path) as copied:
            shutil.copyfile(path, copied)
            copied.replace(older)
    number = keep
    while numbered(path, number).exists():
        numbered(path, number).unlink()
        number += 1


def sync_directory(directory: Path) -> None:
    """Brings the names in a directory down to the disk."""
    if os.name != "posix":  # elsewhere directories cannot be opened
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear(path: Path) -> None:
    """Removes the rest of processes that were killed while they wrote this file."""
    for left in path.parent.glob(f"{_beginning(path)}*") if fcntl is not None else ():
        with suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)


def _remove_unused(path: Path) -> None:
    """Removes further files of earlier archives that no file that is kept names."""
    pattern = re.compile(rf"{re.escape(path.stem)}-[0-9a-f]{{8}}-\d{{5}}-of-\d{{5}}\.safetensors")
    further = [file for file in path.parent.iterdir() if pattern.fullmatch(file.name)]
    if not further:
        return
    used: set[str] = set()
    mains = re.compile(rf"{re.escape(path.stem)}(\.\d+)?{re.escape(path.suffix)}")
    for main in path.parent.iterdir():
        if not mains.fullmatch(main.name):
            continue
        with main.open("rb") as opened:
            header: dict[str, Any] = read_header(opened, main)[0]
        used |= {shard.name for shard in shards_in(header["__metadata__"], main)}
    for file in further:
        if file.name not in used:
            file.unlink()
