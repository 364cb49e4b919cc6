"""Files that are written aside, down to the disk, then renamed, so that no moment has half a file.

Processes that write one file take turns, as far as the file system has locks.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from splitgrow.checkpoints.files import check_regular, refused

try:
    import fcntl
except ImportError:  # not on Windows; there the rest of a killed process stays
    fcntl = None  # type: ignore[assignment]


def write_aside(path: Path, write: Callable[[Path], None]) -> None:
    """Has a file be written aside, down to the disk, and take its name in the end.

    Args:
        path: The file.
        write: Writes to the path that it is given.

    Raises:
        CheckpointError: If it cannot be written. An existing file is untouched.
    """
    path = Path(os.path.realpath(path))
    with refused(f"cannot write {path}"):
        check_regular(path)
        with alone(path):
            clear_(path)
            with place_aside(path) as aside:
                aside = aside.with_suffix(path.suffix)
                write(aside)
                with aside.open("rb") as file:
                    os.fsync(file.fileno())
                aside.replace(path)
                sync_directory(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes bytes to a file, whole or not at all.

    Raises:
        CheckpointError: If it cannot be written. An existing file is untouched.
    """

    def write(aside: Path) -> None:
        aside.write_bytes(content)

    write_aside(path, write)


@contextmanager
def place_aside(path: Path) -> Iterator[Path]:
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
def alone(path: Path) -> Iterator[None]:
    """Waits until no other process writes this file, whose further files would be taken for unused.

    The lock is on a directory, which is removed again; a process that finds it gone makes it anew.
    """
    if fcntl is None:
        yield
        return
    directory = path.with_name(f"{_beginning(path)}lock")
    while True:
        with suppress(FileExistsError):  # mkdir(exist_ok=True) fails if it goes at that moment
            directory.mkdir()
        with _turn(directory) as there:
            if there:
                try:
                    yield
                finally:
                    shutil.rmtree(directory, ignore_errors=True)
                return


@contextmanager
def _turn(directory: Path) -> Iterator[bool]:
    """Waits for the lock on a directory; whether the directory is still there then."""
    descriptor = -1
    with suppress(FileNotFoundError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    if descriptor < 0:
        yield False
        return
    try:
        _lock(descriptor, 0)
        yield _is_at(descriptor, directory)
    finally:
        os.close(descriptor)


def _is_at(descriptor: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), directory.stat())
    except FileNotFoundError:
        return False


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


def clear_(path: Path) -> None:
    """Removes the rest of processes that were killed while they wrote this file."""
    for left in path.parent.glob(f"{_beginning(path)}*") if fcntl is not None else ():
        with suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)


def sync_directory(directory: Path) -> None:
    """Brings the names in a directory down to the disk."""
    if os.name != "posix":  # elsewhere directories cannot be opened
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
