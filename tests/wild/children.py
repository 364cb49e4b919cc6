"""Runs programs in processes of their own; one may die without ending all."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import signal
from collections.abc import Iterator
from multiprocessing.connection import Connection

import torch

from wild.extras import op_list
from wild.trials import tried
from wild.verdicts import Verdict


def verdicts(seeds: range, jobs: int) -> Iterator[Verdict]:
    """The verdicts in the order of the seeds, however many processes there are."""
    op_list()  # here, so that children have it from the start
    children = [_Child(seeds[job::jobs]) for job in range(min(jobs, len(seeds)))]
    try:
        for child, _ in zip(itertools.cycle(children), seeds, strict=False):
            yield child.next()
    finally:
        for child in children:
            child.end()


class _Child:
    """A process that tries one seed after the other; there is another one if it dies."""

    def __init__(self, seeds: range) -> None:
        self.seeds, self.done = seeds, 0
        self._begin()

    def _begin(self) -> None:
        context = multiprocessing.get_context("fork")
        self.here, there = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(self.seeds[self.done :], there))
        self.process.start()
        there.close()

    def next(self) -> Verdict:
        """Of the next seed."""
        seed = self.seeds[self.done]
        self.done += 1
        try:
            verdict: Verdict = self.here.recv()
        except EOFError:
            self.process.join()
            code = self.process.exitcode or 0
            self._begin()
            return Verdict(seed, "WRONG", "died", f"the process died of signal {-code}")
        return verdict

    def end(self) -> None:
        """Ends the process."""
        self.process.terminate()
        self.process.join()


def _work(seeds: range, there: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    torch.set_num_threads(1)
    with contextlib.suppress(BrokenPipeError):  # the parent is gone
        for seed in seeds:
            there.send(tried(seed))
