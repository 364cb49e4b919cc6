"""Kills training runs at random moments, and lets them continue."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from crashes.training import go_on, kept, left_behind
from splitgrow.checkpoints.archives import Archive

Work = Callable[[Path], str]
Moment = Callable[[], None]
"""Waits until it has come."""


@dataclass
class Found:
    """What came of some kills.

    Attributes:
        kills: How many processes were killed.
        saving: How many of them while they wrote a file.
        runs: How many runs came to their end nevertheless.
        faults: What was wrong.
    """

    kills: int = 0
    saving: int = 0
    runs: int = 0
    faults: list[str] = field(default_factory=list)


def in_fork(work: Callable[[], str], moment: Moment | None = None) -> tuple[int, str]:
    """Runs something in a fork, killed at a moment; its exit code and what it returned."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, work().encode())
        except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
            os.write(writing, traceback.format_exc()[-4000:].encode())
            os._exit(1)
        os._exit(0)
    os.close(writing)
    if moment is not None:
        moment()
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with open(reading, "rb") as pipe:  # noqa: PTH123
        return status, pipe.read().decode()


def whole(path: Path) -> str:
    """Opens every checkpoint that is kept; they are compared with their checksums."""
    for each in kept(path):
        with Archive(each):
            pass
    return ""


def moment_of(path: Path, draw: random.Random, longest: float = 0.8) -> Moment:
    """Some time after the beginning, or, every other time, soon after a file begins to be written.

    Args:
        path: The file.
        draw: Draws it.
        longest: The latest, in seconds.
    """
    aimed, seconds = draw.random() < 0.5, draw.uniform(0, longest)

    def wait() -> None:
        if not aimed:
            time.sleep(seconds)
            return
        began = {*path.parent.glob(".splitgrow-*")}
        until = time.monotonic() + 5
        while time.monotonic() < until and not {*path.parent.glob(".splitgrow-*")} - began:
            pass
        time.sleep(seconds / 50)

    return wait


def kill(times: int, seed: int = 0, work: Work = go_on) -> Found:
    """Kills runs so many times; they go on until they are done, and new ones begin.

    Args:
        times: How many kills.
        seed: Of the moments.
        work: The run: trains, and returns a digest.
    """
    draw, found = random.Random(seed), Found()
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(2):  # what is imported late is there in every fork then
            go_on(Path(directory) / "warm.safetensors", 4)
        status, reference = in_fork(lambda: work(Path(directory) / "reference.safetensors"))
        assert not status, reference
        while found.kills < times:
            path = Path(directory) / str(found.runs) / "run.safetensors"
            path.parent.mkdir()
            _one(path, work, reference, times, draw, found)
            found.runs += 1
    return found


def _one(
    path: Path, work: Work, reference: str, times: int, draw: random.Random, found: Found
) -> None:
    while True:
        moment = moment_of(path, draw) if found.kills < times else None
        before = {*path.parent.glob(".splitgrow-*")}
        status, text = in_fork(lambda: work(path), moment)
        if status == -signal.SIGKILL:
            found.kills += 1
            found.saving += bool({*path.parent.glob(".splitgrow-*")} - before)
            code, error = in_fork(lambda: whole(path))
            if code:
                found.faults.append(error)
                return
            continue
        if status:
            found.faults.append(text)
        elif text != reference:
            found.faults.append("the weights at the end are others")
        if left_behind(path):
            found.faults.append(f"left behind: {', '.join(left_behind(path))}")
        return
