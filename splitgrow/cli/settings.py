"""The options of `splitgrow demo`.

Free of torch, so that the command can show its defaults without loading it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

MOST_GB = 4.0  # of memory, in units of 10**9 bytes, that data may take as their files hold them
AUGMENTATIONS = ("flips", "crops")
"""The kinds of change of training images."""
TINY = 16  # pixels, below which an image asks for less of everything
_IMAGES = 60_000  # that a whole run trains on, counted as often as they are seen


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """How a demo trains and grows its network."""

    epochs: int  # in each phase of training
    width: int
    batch_size: int = 64
    by: float = 0.5  # the fraction by which widths grow
    learning_rate: float = 0.01
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("by", "learning_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be a positive number, not {value}")
        if self.seed < 0:
            raise ValueError(f"seed must not be negative, not {self.seed}")

    @classmethod
    def suited_to(
        cls,
        images: int,
        side: int,
        *,
        epochs: int | None,
        width: int | None,
        phases: int = 3,
        **chosen: Any,
    ) -> DemoSettings:
        """Settings with which some number of images of side x side pixels take minutes at most.

        >>> DemoSettings.suited_to(1437, 8, epochs=None, width=None)
        DemoSettings(epochs=14, width=4, batch_size=64, by=0.5, learning_rate=0.01, seed=0)
        """
        return cls(
            epochs=epochs or suited_epochs(images, phases),
            width=width or suited_width(side),
            **chosen,
        )


def suited_width(side: int) -> int:
    """The channels of the first stage that suit images of side x side pixels."""
    return 4 if side < TINY else 8


def suited_epochs(images: int, phases: int) -> int:
    """The epochs in each of some phases of training with which a whole run takes minutes at most.

    >>> suited_epochs(1437, 3), suited_epochs(60_000, 3)
    (14, 1)
    """
    return min(20, max(1, round(_IMAGES / phases / images)))
