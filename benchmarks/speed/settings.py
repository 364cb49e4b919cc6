"""How the claims are measured: on what device, how often, and at which size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.speed.results import Measurement

FULL_ROUNDS, QUICK_ROUNDS = 15, 5


@dataclass(frozen=True)
class Settings:
    """What all claims of one run share.

    Attributes:
        quick: Whether to take small networks: that finds what is broken, and measures little.
        device: "cpu" or "cuda".
        rounds: How often each contestant has its turn.
        threads: How many threads torch uses on the CPU.
    """

    quick: bool = False
    device: str = "cpu"
    rounds: int = FULL_ROUNDS
    threads: int = 1

    @property
    def few(self) -> int:
        """How often to repeat what takes long or hardly varies."""
        return max(1, min(self.rounds, 1 if self.quick else 3))

    def prepare(self) -> None:
        """Sets torch up as these settings ask."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)


@dataclass(frozen=True)
class Claim:
    """Something that is said about speed or memory, and the code that measures it.

    Attributes:
        name: What `--only` takes.
        says: What is measured, in one sentence.
        run: Measures it, case by case.
        needs: The device without which it cannot be measured; empty if any will do.
    """

    name: str
    says: str
    run: Callable[[Settings], Iterator[Measurement]]
    needs: str = ""
