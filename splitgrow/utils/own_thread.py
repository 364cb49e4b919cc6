"""Work apart from the modes of the calling thread: torch's tracing, default device, grad mode."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Result = TypeVar("_Result")


def in_own_thread(work: Callable[[], _Result]) -> _Result:
    """The result of a function that runs in a thread of its own, without gradients.

    Torch's modes belong to threads. So what is computed there is computed plainly, whatever the
    calling thread traces. The state of the CPU's random numbers is as before.

    Args:
        work: The function.
    """

    def run() -> _Result:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()
