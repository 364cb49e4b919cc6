"""Runs a function in several processes that meet over gloo, as torchrun starts them."""

from __future__ import annotations

import io
import multiprocessing
import os
import queue
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PATIENCE = 60.0
"""Seconds after which a test's processes are taken for stuck."""


class FailedError(AssertionError):
    """A process raised, or did not come to its end."""


def in_processes(world: int, work: Callable[..., Any], *args: Any, lost: tuple[int, ...] = ()):
    """What a function returns in each of several processes, by rank.

    Args:
        world: The number of processes.
        work: A function of a module, given the rank and the arguments.
        args: Further arguments.
        lost: The ranks that are to die on the way.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["splitgrow.distributed", "distributed_work"])
    # The store is kept by this process, as by torchrun, so that it outlives each of them.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    answers: Any = context.Queue()
    processes = [
        context.Process(target=_enter, args=(rank, world, store.port, answers, work, args))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    try:
        found = _collected(processes, answers, lost)
        if not found:  # all of them are to die; wait until they have
            for process in processes:
                process.join(PATIENCE)
        return found
    finally:
        for process in processes:
            process.kill()
            process.join()


def _collected(processes: list[Any], answers: Any, lost: tuple[int, ...]) -> dict[int, Any]:
    found: dict[int, Any] = {}
    deadline = time.monotonic() + PATIENCE
    while len(found) < len(processes) - len(lost):
        try:
            rank, failure, answer = answers.get(timeout=0.2)
        except queue.Empty:
            dead = [r for r, p in enumerate(processes) if p.exitcode not in (None, 0)]
            if set(dead) - set(lost) or time.monotonic() > deadline:
                raise FailedError(f"ranks {dead} died; {sorted(found)} came back") from None
            continue
        if failure:
            raise FailedError(f"rank {rank}:\n{failure}")
        found[rank] = torch.load(io.BytesIO(answer), weights_only=True)
    return found


def _enter(rank: int, world: int, port: int, answers: Any, work: Any, args: Any) -> None:
    torch.set_num_threads(1)
    try:
        with meeting(rank, world, port):
            answer = work(rank, *args)
        written = io.BytesIO()  # tensors would be read from a process that is gone by then
        torch.save(answer, written)
        answers.put((rank, "", written.getvalue()))
    except BaseException:  # noqa: BLE001 - the test hears of it
        answers.put((rank, traceback.format_exc(), b""))


@contextmanager
def meeting(rank: int, world: int, port: int) -> Iterator[None]:
    """A process group over gloo inside a ``with`` block."""
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=30))
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=20)
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
