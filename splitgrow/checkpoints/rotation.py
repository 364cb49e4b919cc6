"""Older files of a checkpoint: their numbers, and how a new file pushes them on."""

from __future__ import annotations

import filecmp
import os
import shutil
from contextlib import suppress
from pathlib import Path

from splitgrow.checkpoints.asides import place_aside
from splitgrow.checkpoints.files import check_regular, numbered, refused
from splitgrow.errors import CheckpointError


def check_older(path: Path, keep: int) -> None:
    """Makes sure that the numbers of older files are those of files, or free.

    Raises:
        CheckpointError: If one is not.
    """
    number = 1
    while keep > 1 and (number <= keep or os.path.lexists(numbered(path, number))):
        older = numbered(path, number)
        with refused(f"cannot keep {older}"):
            free = not check_regular(older)
        if free and older.is_symlink():
            raise CheckpointError(f"{older} is a link to nothing, not a file; remove it")
        number += 1


def rotate_(path: Path, keep: int) -> None:
    """Gives the files that are there the numbers of older ones; the newest keeps its name, too.

    Only files before the first free number move on, and none is dropped as long as a number up to
    `keep` is free. So a save that ends here has lost none of the files that count.
    """
    if keep < 2 or not path.exists() or _is_same(numbered(path, 1), path):
        return
    free = next((n for n in range(1, keep) if not numbered(path, n).exists()), keep)
    for number in range(free, 1, -1):
        numbered(path, number - 1).replace(numbered(path, number))
    older = numbered(path, 1)
    try:  # until the new one takes its place, the file is there under both names
        os.link(path, older)
    except OSError:  # a file system without such names
        with place_aside(path) as copied:
            shutil.copyfile(path, copied)
            times = path.stat()
            with suppress(OSError):  # a file system that keeps no times: one file more is kept
                os.utime(copied, ns=(times.st_atime_ns, times.st_mtime_ns))
            with copied.open("rb") as file:
                os.fsync(file.fileno())
            copied.replace(older)


def _is_same(older: Path, path: Path) -> bool:
    """Whether a file is under its older name already, since a save was killed then."""
    if not older.exists():
        return False
    one, other = older.stat(), path.stat()
    if os.path.samestat(one, other):
        return True
    alike = (one.st_size, one.st_mtime_ns) == (other.st_size, other.st_mtime_ns)
    return alike and filecmp.cmp(older, path, shallow=False)  # a copy of it


def drop_older_(path: Path, keep: int) -> None:
    """Removes older files than are kept."""
    number = keep
    while keep > 1 and numbered(path, number).exists():
        numbered(path, number).unlink()
        number += 1
