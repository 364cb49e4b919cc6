"""Kills processes that save to one path at the same time."""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
import traceback
from pathlib import Path

from crashes.faults import number_in, save
from crashes.kills import Found
from crashes.training import KEEP, kept, left_behind

SAVERS = 3


def kill_together(times: int, seed: int = 0) -> Found:
    """Kills one of some savers so many times; another takes its place.

    After each kill, the files that are kept are compared with their checksums: there are as many
    different ones as are to be kept, whoever wrote them.

    Args:
        times: How many kills.
        seed: Of the moments.
    """
    draw, found = random.Random(seed), Found()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "run" / "run.safetensors"
        path.parent.mkdir()
        for number in range(KEEP):
            save(path, number)
        savers = [_saver(path, KEEP + n) for n in range(SAVERS)]
        try:
            while found.kills < times:
                time.sleep(draw.uniform(0, 0.2))
                before = {*path.parent.glob(".splitgrow-*")}
                killed = savers.pop(draw.randrange(SAVERS))
                os.kill(killed, signal.SIGKILL)
                os.waitpid(killed, 0)
                found.kills += 1
                found.saving += bool(before)
                found.faults += _stop(savers, path.parent.parent)
                found.faults += _wrong(path)
                _go_on(savers)
                savers += [_saver(path, 500 + n) for n in range(SAVERS - 1 - len(savers))]
                savers.append(_saver(path, 1000 * found.kills))
        finally:
            _go_on(savers)
            for each in savers:
                os.kill(each, signal.SIGKILL)
                os.waitpid(each, 0)
        found.faults += _wrong(path)
        save(path, 0)
        found.faults += [f"left behind: {name}" for name in left_behind(path)]
    return found


def _saver(path: Path, number: int) -> int:
    child = os.fork()
    if not child:
        try:
            while True:
                save(path, number)
                number += SAVERS
        except BaseException:  # noqa: BLE001 - a fork must not go on as its parent
            (path.parent.parent / str(os.getpid())).write_text(traceback.format_exc()[-2000:])
        finally:
            os._exit(1)
    return child


def _stop(savers: list[int], told: Path) -> list[str]:
    """Stops savers wherever they are, for a look at the files: any moment is one to be killed.

    Returns:
        The errors of those that have ended by themselves, which leave the list.
    """
    wrong = []
    for each in [*savers]:
        os.kill(each, signal.SIGSTOP)
        if not os.WIFSTOPPED(os.waitpid(each, os.WUNTRACED)[1]):
            wrong.append((told / str(each)).read_text())
            savers.remove(each)
    return wrong


def _go_on(savers: list[int]) -> None:
    for each in savers:
        os.kill(each, signal.SIGCONT)


def _wrong(path: Path) -> list[str]:
    try:
        numbers = [number_in(each) for each in kept(path)]
    except Exception as error:  # noqa: BLE001
        return [f"{type(error).__name__}: {error}"]
    few = not path.exists() or len({*numbers}) < KEEP
    return [f"the files are {numbers}"] if few else []
