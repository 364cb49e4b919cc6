"""Runs the parts in a process that is stopped where one takes too long, and goes on with the rest.

The process writes the results file after every case. So whatever happens to it, they are kept.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from benchmarks.gpu.plan import Part
from benchmarks.speed.catalogue import CLAIMS

STARTED, DONE, FAILED = "=start=", "=done=", "=failed="
CHILD = ("-m", "benchmarks.gpu.child")
LOADING = 120.0
"""Seconds that a process may take before its first part."""


def run_parts(
    parts: Sequence[Part], options: Sequence[str], *, device: str, minutes: float, console: Console
) -> dict[str, str]:
    """Runs all parts that the time allows.

    Args:
        parts: In this order.
        options: For the measuring process.
        device: "cuda" or "cpu".
        minutes: For all of them.
        console: Told what the process prints.

    Returns:
        For each part that was not measured, or not to its end, the reason.
    """
    needs = {claim.name: claim.needs for claim in CLAIMS}
    why = {p.claim: f"needs {needs[p.claim]}" for p in parts if needs[p.claim] not in ("", device)}
    left = [part for part in parts if part.claim not in why]
    deadline = time.monotonic() + 60 * minutes
    while left and time.monotonic() < deadline:
        done, failure = _run_until_stuck(left, options, deadline, console)
        why.update(failure)
        if not done:
            break
        left = left[len(done) :]
    reason = "no time was left" if time.monotonic() >= deadline else "nothing could be started"
    why.update({part.claim: reason for part in left if part.claim not in why})
    return why


def _run_until_stuck(
    parts: Sequence[Part], options: Sequence[str], deadline: float, console: Console
) -> tuple[list[str], dict[str, str]]:
    """The parts that a process came to, and for those that failed the reason."""
    names = [f"{part.claim}:{part.seconds}:{part.rounds}" for part in parts]
    process = subprocess.Popen(
        [sys.executable, *CHILD, *options, *names],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    limits = {part.claim: part.limit for part in parts}
    watch, lines = _Watch(deadline), queue.Queue[str | None]()
    listener = threading.Thread(target=_listen, args=(process, lines))
    listener.start()
    came: list[str] = []
    why: dict[str, str] = {}
    now = ""
    try:
        for line in _lines(lines, watch):
            word, _, rest = line.partition(" ")
            if word == STARTED:
                now = rest
                came.append(now)
                watch.allow(limits[now])
            elif word == FAILED:
                why[now] = rest
            elif word == DONE:
                now = ""
                watch.allow(LOADING)
            else:
                console.print(line, markup=False, highlight=False, soft_wrap=True)
    except TimeoutError:
        if now:
            late = time.monotonic() >= deadline
            why[now] = "no time was left" if late else f"stopped after {limits[now]:.0f} s"
    finally:
        _stop(process)
        listener.join()
    if now and now not in why:
        why[now] = f"its process ended with {process.returncode}"
    return came, why


class _Watch:
    """Until when the next line must come."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self.allow(LOADING)

    def allow(self, seconds: float) -> None:
        """So long from now, but not beyond the deadline."""
        self._until = min(time.monotonic() + seconds, self._deadline)

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return max(0.0, self._until - time.monotonic())


def _listen(process: subprocess.Popen[str], lines: queue.Queue[str | None]) -> None:
    """Passes on what a process prints, and in the end None."""
    assert process.stdout is not None
    with process.stdout as stream:
        for line in stream:
            lines.put(line.rstrip("\n"))
    process.wait()
    lines.put(None)


def _lines(lines: queue.Queue[str | None], watch: _Watch) -> Iterator[str]:
    """What comes before the end.

    Raises:
        TimeoutError: If nothing came in time.
    """
    while True:
        try:
            line = lines.get(timeout=watch.left)
        except queue.Empty:
            raise TimeoutError from None
        if line is None:
            return
        yield line


def _stop(process: subprocess.Popen[str]) -> None:
    """Ends a process with all that it has started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()
