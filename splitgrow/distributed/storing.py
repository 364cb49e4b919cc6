"""Checkpoints of several processes: where they lie, and how a new one takes the place of the old.

A directory holds checkpoints by number, each a directory of torch.distributed.checkpoint's files
with a manifest beside them, and a small file that names the one that counts. That file is replaced
in one step, once all of the new checkpoint is on the disk.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitgrow.checkpoints.asides import sync_directory
from splitgrow.checkpoints.contents import FilePart, read_versioned
from splitgrow.checkpoints.files import check_regular, opened_file, refused
from splitgrow.checkpoints.training import SavedOptimizer, SavedScheduler
from splitgrow.errors import CheckpointError
from splitgrow.utils.json_records import written

MANIFEST_VERSION = 1
MANIFEST = "splitgrow.json"
LATEST = "latest"
_UNFINISHED = ".part"


@dataclass(frozen=True)
class Manifest:
    """All that a checkpoint of several processes holds besides tensors.

    Attributes:
        journal: The model's journal, as JSON makes it.
        parts: The modules of the model as it was written.
        optimizers: The optimizers.
        schedulers: The schedulers.
        random: The states of the random number generators of each rank, as trees.
        extra: The user's additions, as a tree.
        execution: How grown layers run.
        files: The sizes of the files of tensors, by name.
        torch: The version of torch.
        version: The version of the format.
    """

    journal: object
    parts: tuple[FilePart, ...]
    optimizers: tuple[SavedOptimizer, ...]
    schedulers: tuple[SavedScheduler, ...]
    random: tuple[object, ...]
    extra: object
    execution: str
    files: Mapping[str, int]
    torch: str
    version: int = field(default=MANIFEST_VERSION)


def latest(directory: Path) -> int:
    """The number of the checkpoint that counts; 0 if there is none.

    Raises:
        CheckpointError: If the file that says so is none, or cannot be read.
    """
    with refused(f"cannot read {directory / LATEST}"):
        try:
            text = _text_of(directory / LATEST)
        except FileNotFoundError:
            return 0
    if not text.strip().isdecimal():
        raise CheckpointError(f"{directory / LATEST} does not name a checkpoint: {text[:50]!r}")
    return int(text)


def prepared(directory: Path) -> Path:
    """The directory of the next checkpoint; the rest of an earlier attempt is removed.

    Raises:
        CheckpointError: If something that no save writes is in the way; it stays as it is.
    """
    check_places(directory)
    path = _path(directory, latest(directory) + 1)
    place = path.with_name(path.name + _UNFINISHED)
    for left in (place, path):  # renamed, but not yet named as the one that counts
        shutil.rmtree(left, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def check_places(directory: Path) -> None:
    """Makes sure that nothing is in the way of the next checkpoint that no save has written.

    Raises:
        CheckpointError: If something is; it stays as it is.
    """
    with refused(f"cannot save to {directory}"):
        for each in (directory / LATEST, directory / f"{LATEST}{_UNFINISHED}"):
            check_regular(each)
        path = _path(directory, latest(directory) + 1)
        for place in (directory, path, path.with_name(path.name + _UNFINISHED)):
            if os.path.lexists(place) and not place.is_dir():
                raise CheckpointError(f"{place} is no directory; give another, or remove it")


def next_place(directory: Path) -> Path:
    """Where the next checkpoint is written."""
    path = _path(directory, latest(directory) + 1)
    return path.with_name(path.name + _UNFINISHED)


def commit(place: Path, manifest: Mapping[str, Any], keep: int) -> None:
    """Has a checkpoint that is written count from now on.

    Args:
        place: Where it was written.
        manifest: The fields of its `Manifest`, without the sizes of the files.
        keep: How many checkpoints stay, this one among them.
    """
    files = {file.name: file.stat().st_size for file in sorted(place.iterdir())}
    complete = Manifest(**manifest, files=files)
    _write(place / MANIFEST, json.dumps(written(complete)))
    sync_directory(place)
    path = place.with_name(place.name.removesuffix(_UNFINISHED))
    place.rename(path)
    sync_directory(path.parent)
    aside = path.parent / f"{LATEST}{_UNFINISHED}"
    number = int(path.name)
    _write(aside, str(number))
    aside.replace(path.parent / LATEST)
    sync_directory(path.parent)
    for older in path.parent.iterdir():
        if older.name.isdecimal() and int(older.name) <= number - keep:
            shutil.rmtree(older, ignore_errors=True)


def give_up(place: Path) -> None:
    """Removes the files of a checkpoint that will not be finished."""
    with suppress(OSError):
        shutil.rmtree(place)


def opened_manifest(directory: Path) -> tuple[Path, Manifest, str]:
    """The checkpoint that counts, and its manifest, read and as it is written.

    Raises:
        CheckpointError: If there is none, or it is damaged or of another version.
    """
    number = latest(directory)
    if not number:
        raise CheckpointError(f"{directory} holds no checkpoint of splitgrow.distributed.save")
    path = _path(directory, number)
    try:
        text = _text_of(path / MANIFEST)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    manifest = read_versioned(Manifest, text, MANIFEST_VERSION, path)
    for name, size in manifest.files.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != size:
            raise CheckpointError(
                f"{file} is {'missing' if found is None else f'{found} bytes'}, it was {size} bytes"
            )
    return path, manifest, text


def _path(directory: Path, number: int) -> Path:
    return directory / f"{number:06d}"


def _text_of(path: Path) -> str:
    with opened_file(path) as file:
        return file.read().decode()


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
