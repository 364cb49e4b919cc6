"""The learning rates of new parameters: a scale, a warm-up, and the schedulers that go on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rates:
    """The learning rates of the parameters that an edit adds.

    Attributes:
        scale: The factor on the rate of the param group that they would join.
        warmup: The number of optimizer steps over which their rate rises to that, linearly.
        schedulers: The schedulers that set the rates of the optimizers' groups.
    """

    scale: float = 1.0
    warmup: int = 0
    schedulers: tuple[Any, ...] = ()

    @property
    def own(self) -> bool:
        """Whether new parameters need a group of their own."""
        return self.scale != 1.0 or self.warmup > 0

    @classmethod
    def of(cls, lr_scale: object, warmup: object, scheduler: object) -> Rates:
        """The rates for the arguments of a call.

        Args:
            lr_scale: A positive number.
            warmup: A number of steps.
            scheduler: A scheduler, several, or None.

        Raises:
            TypeError: If one is of another type.
            ValueError: If one is out of range.
        """
        if isinstance(lr_scale, bool) or not isinstance(lr_scale, (int, float)):
            raise TypeError(f"lr_scale must be a number, got {lr_scale!r}")
        if not (math.isfinite(lr_scale) and lr_scale > 0):
            raise ValueError(f"lr_scale must be positive and finite, got {lr_scale!r}")
        if isinstance(warmup, bool) or not isinstance(warmup, int):
            raise TypeError(f"warmup must be a number of steps, got {warmup!r}")
        if warmup < 0:
            raise ValueError(f"warmup must be at least 0 steps, got {warmup!r}")
        if scheduler is None:
            schedulers: tuple[Any, ...] = ()
        elif isinstance(scheduler, Iterable) and not hasattr(scheduler, "step"):
            schedulers = tuple(scheduler)
        else:
            schedulers = (scheduler,)
        for one in schedulers:
            if not callable(getattr(one, "step", None)):
                raise TypeError(f"scheduler must be a learning rate scheduler, got {one!r}")
        return cls(float(lr_scale), warmup, schedulers)


AS_THE_GROUP = Rates()
"""The rates of parameters that join a group and have its rate."""
