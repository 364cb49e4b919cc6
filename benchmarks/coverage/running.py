"""Every model in a process of its own, with a time limit, a few at a time."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from typing import Any

import torch

from benchmarks.coverage.catalogues import find, module_of
from benchmarks.coverage.checking import check
from benchmarks.coverage.findings import Findings
from benchmarks.coverage.results import unfinished

Target = Callable[[str, str, bool, Connection], None]


@dataclass(frozen=True)
class Limits:
    """What a model may use.

    Attributes:
        seconds: For all that is done with splitgrow.
        peer_seconds: For the peer; 0 leaves it out.
        jobs: How many models run at a time.
    """

    seconds: float = 300
    peer_seconds: float = 120
    jobs: int = 1


@dataclass
class Run:
    """A model whose process is running.

    Attributes:
        name: The model.
        process: Its process.
        messages: Where the process tells what it does.
        deadline: When it has to be done with what it does.
        step: What it does.
        record: What it has found so far, as JSON data.
    """

    name: str
    process: ForkServerProcess
    messages: Connection
    deadline: float
    step: str = "build"
    record: dict[str, Any] = field(default_factory=dict)


def check_all(
    library: str, names: Sequence[str], limits: Limits, target: Target | None = None
) -> Iterator[dict[str, Any]]:
    """The records of models, as JSON data, in the order in which they are done.

    Args:
        library: The package that they come from.
        names: The models.
        limits: What each may use.
        target: What runs in each process; `examine` unless it is tested.
    """
    # Many small models on few cores: threads of one model would only wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.coverage.warm", module_of(library), __name__])
    waiting, running = list(names)[::-1], list[Run]()
    try:
        while waiting or running:
            while waiting and len(running) < limits.jobs:
                name = waiting.pop()
                ours, theirs = context.Pipe(duplex=False)
                arguments = (library, name, limits.peer_seconds > 0, theirs)
                process = context.Process(target=target or examine, args=arguments, daemon=True)
                process.start()
                theirs.close()
                running.append(Run(name, process, ours, time.monotonic() + limits.seconds))
            soonest = min(run.deadline for run in running)
            wait([run.messages for run in running], timeout=max(0, soonest - time.monotonic()))
            for run in list(running):
                record = _advance(run, limits)
                if record is not None:
                    running.remove(run)
                    yield record
    finally:
        for run in running:
            run.process.kill()


def examine(library: str, name: str, peer: bool, messages: Connection) -> None:  # noqa: FBT001
    """Runs in a model's process: the check, then the peer; tells each step and its findings."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one sees to it
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    torch.set_num_threads(1)
    subject = find(library, name)

    def tell(step: str, found: Findings) -> None:
        messages.send((step, found.as_dict()))

    started = time.perf_counter()
    found = check(subject, tell)
    found.seconds["total"] = round(time.perf_counter() - started, 4)
    if peer:
        from benchmarks.coverage.peers import ask_peer  # noqa: PLC0415  not needed without it

        tell("peer", found)
        found.peer = ask_peer(subject, found)
    tell("done", found)


def _advance(run: Run, limits: Limits) -> dict[str, Any] | None:
    """Reads what a process tells; the record, if it is done, dead or late."""
    try:
        while run.messages.poll():
            step, run.record = run.messages.recv()
            if step == "done":
                run.process.join()
                return run.record
            if step == "peer":
                run.deadline = time.monotonic() + limits.peer_seconds
            run.step = step
    except EOFError:
        run.process.join()
        cause = f"the process ended with exit code {run.process.exitcode}"
        return unfinished(run.name, run.record, run.step, cause)
    if time.monotonic() < run.deadline:
        return None
    run.process.kill()
    run.process.join()
    return unfinished(run.name, run.record, run.step, "timeout")
