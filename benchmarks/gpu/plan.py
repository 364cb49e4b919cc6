"""The claims that are measured on a GPU, the most important first, with the time of each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """One claim.

    Attributes:
        claim: Its name.
        seconds: After these no further case of it begins.
        rounds: How often each contestant has its turn.
    """

    claim: str
    seconds: float
    rounds: int = 9

    @property
    def limit(self) -> float:
        """Seconds after which it is stopped, whatever it does."""
        return 1.5 * self.seconds + 20


PARTS = (
    Part("training-frozen-12", 45),
    Part("fused-inference", 40),
    Part("bf16", 40),
    Part("cuda-graphs", 90),
    Part("channels-last", 35),
    Part("optimizers", 35),
    Part("optimizer-capturable", 15),
    Part("growth-memory", 25, 1),
    Part("training-memory", 50, 1),
    Part("grown-inference", 30),
    Part("training-free", 30),
    Part("training-frozen-25", 25),
    Part("against-masks", 20),
    Part("absorbed-training", 20),
    Part("growth-time", 15, 3),
    Part("fuse-memory", 25, 1),
    Part("many-growths", 25, 3),
)
