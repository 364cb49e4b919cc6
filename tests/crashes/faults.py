"""Fails or dies at every operation on files in turn that saving makes."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import splitgrow
from crashes.kills import in_fork
from crashes.training import KEEP, kept, left_behind
from splitgrow import CheckpointError
from splitgrow.checkpoints import asides, saving, writing
from splitgrow.checkpoints.archives import Archive
from splitgrow.checkpoints.loading import contents_of

How = Literal["dies", "fails", "is interrupted"]
EVENTS = ("open", "os.", "shutil.")
"""What Python tells of before it does it."""


class Counter:
    """Counts operations while a file is written, and does something at one of them."""

    def __init__(self, number: int, act: Callable[[], None]) -> None:
        self.number, self.act, self.seen = number, act, 0
        self.on = False

    def __call__(self, event: str, args: Any = ()) -> None:
        if self.on and event.startswith(EVENTS):
            self.seen += 1
            if self.seen == self.number:
                self.act()


def _act(how: How) -> Callable[[], None]:
    def act() -> None:
        if how == "dies":
            os._exit(0)
        if how == "is interrupted":
            raise KeyboardInterrupt
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return act


def _watch(counter: Counter) -> None:
    """Has a counter see what Python tells of, and what it does not."""
    sys.addaudithook(counter)
    for module, name in ((os, "fsync"), (writing, "save_file"), (asides.fcntl, "flock")):
        original = getattr(module, name)

        def told(*args: Any, original: Any = original, **kwargs: Any) -> Any:
            counter("os.")
            return original(*args, **kwargs)

        setattr(module, name, told)

    def write(*args: Any, **kwargs: Any) -> None:
        counter.on = True
        try:
            writing.write_archive(*args, **kwargs)
        finally:
            counter.on = False

    saving.write_archive = write  # type: ignore[assignment]


def save(path: Path, number: int) -> None:
    """Saves a small model that knows its number."""
    torch.manual_seed(0)
    model = splitgrow.growable(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.ones(1, 2))
    splitgrow.save(model, path, extra=number, keep=KEEP, shard_bytes=5000)


def load(path: Path) -> int:
    """Loads the model; returns its number."""
    found: int = splitgrow.load(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), path)
    return found


def number_in(path: Path) -> int:
    """The number of a model, whose file is whole."""
    with Archive(path) as archive:
        found: Any = contents_of(archive).extra
    return int(found)


def _try(path: Path, how: How, at: int) -> str:
    """Saves, with a fault at one operation; "" once there are no more operations than that."""
    counter = Counter(at, _act(how))
    _watch(counter)
    try:
        save(path, KEEP + 1)
    except CheckpointError:
        if how != "fails":
            raise
    except KeyboardInterrupt:
        if how != "is interrupted":
            raise
    return "reached" if counter.seen >= at else ""


def faults(how: How, every: int = 1) -> tuple[int, list[str]]:
    """Fails at each operation in turn, or at every so many; how many there are, what was wrong."""
    found: list[str] = []
    with tempfile.TemporaryDirectory() as directory:
        begun = Path(directory) / "begun"
        begun.mkdir()
        for number in range(1, KEEP + 1):
            save(begun / "run.safetensors", number)
        load(begun / "run.safetensors")  # what is imported late is there in every fork then
        at = 1 - every
        while True:
            at += every
            path = Path(directory) / str(at) / "run.safetensors"
            shutil.copytree(begun, path.parent)
            status, text = in_fork(partial(_try, path, how, at))
            if not status and not text and _finished(path):
                return at - 1, found
            found += [f"operation {at}: {fault}" for fault in _wrong(path, how, status, text)]


def _finished(path: Path) -> bool:
    return number_in(path) == KEEP + 1 and not left_behind(path) and len(kept(path)) == KEEP


def _wrong(path: Path, how: How, status: int, text: str) -> list[str]:
    wrong = [text] if status else []
    try:
        load(path)
        numbers = [number_in(each) for each in kept(path)]
        newest = numbers[0]
        if newest not in {KEEP, KEEP + 1} or numbers != sorted(numbers, reverse=True):
            wrong.append(f"the files are {numbers}")
        if not {*range(newest - KEEP + 1, newest + 1)} <= {*numbers}:
            wrong.append(f"an older file is gone: {numbers}")
        save(path, KEEP + 2)
        then = [number_in(each) for each in kept(path)]
        if then != [KEEP + 2, *range(newest, newest - KEEP + 1, -1)]:
            wrong.append(f"after the next save, the files are {then}")
    except Exception as error:  # noqa: BLE001
        wrong.append(f"{type(error).__name__}: {error}")
    if left_behind(path):
        wrong.append(f"left behind: {', '.join(left_behind(path))}")
    return wrong
