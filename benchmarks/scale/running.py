"""Runs the models of the series, each in a process of its own, and keeps every step."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.coverage.results import machine
from benchmarks.scale.models import SERIES
from benchmarks.scale.steps import STEPS, Found, measured
from benchmarks.speed.child import GIVE_BACK
from benchmarks.speed.machine import commit

FOLDER = Path(__file__).parents[1] / "results" / "scale"
NAME = "steps.jsonl"
LIMIT = 600.0
"""Seconds after which a step counts as not done."""
ROOM = 12
"""GiB that a process may take."""


def measure(
    runs: Path, only: tuple[str, ...], repeats: int, *, beyond: bool, console: Console
) -> None:
    """Makes the measurements that are missing.

    Args:
        runs: The folder of results.
        only: The series; all if there are none.
        repeats: How often each model is to be measured.
        beyond: Whether to measure the larger ones, too.
        console: Told each step.
    """
    path = runs / NAME
    os.environ.update(GIVE_BACK, OMP_NUM_THREADS="1")  # before the server starts
    for repeat in range(repeats):
        for name, size in _asked(only, beyond=beyond):
            done = {r["repeat"] for r in read(path) if (r["series"], r["size"]) == (name, [*size])}
            if repeat in done:
                continue
            record: dict[str, Any] = {"series": name, "size": [*size], "repeat": repeat}
            record["steps"] = list(_steps(name, size))
            for found in record["steps"]:
                told = found["error"] or f"{found['seconds']:.2f} s, {found['memory']:.0f} MiB"
                console.print(f"{name} {size} {found['step']}: {told}", highlight=False)
            record["machine"] = {**machine(), "commit": commit()}
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """The records so far: one for each process."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _asked(only: tuple[str, ...], *, beyond: bool) -> Iterator[tuple[str, tuple[int, int]]]:
    for name in only or SERIES:
        series = SERIES[name]
        for size in series.sizes + (series.beyond if beyond else ()):
            yield name, size


def _steps(name: str, size: tuple[int, int]) -> Iterator[dict[str, Any]]:
    """The steps that a new process has done, and the one that it has not, if it came to no end."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.scale.warm"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_measuring, args=(theirs, name, size))
    process.start()
    theirs.close()
    done: list[str] = []
    try:
        while ours.poll(LIMIT):
            found = ours.recv()
            if found is None:
                return
            done.append(found["step"])
            yield found
        yield _undone(done, f"not done in {LIMIT:.0f} s")
    except EOFError:
        process.join()
        yield _undone(done, f"the process ended with {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _measuring(answers: Any, name: str, size: tuple[int, int]) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (ROOM * 2**30, ROOM * 2**30))
    for found in measured(SERIES[name], size):
        answers.send(asdict(found))
    answers.send(None)


def _undone(done: list[str], error: str) -> dict[str, Any]:
    left = [step for step in STEPS if step not in done]
    return asdict(Found(left[0] if left else "the end", error=error))
