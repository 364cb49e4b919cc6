"""The values that new channels have at birth, and how a norm over all channels takes them in.

Where channels share a statistic, as in a LayerNorm, new ones may join only with values that change
the statistic in a known way.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Start(Enum):
    """The values of new channels until they learn, beside those of the old channels."""

    FREE = "free"
    """Any values."""
    ZERO = "zero"
    """Zeros."""
    MEAN = "mean"
    """The mean of all old channels of the axis, on every new one."""
    COPY = "copy"
    """The values of the old units in turn."""


WAYS: dict[str, Start] = {"zero": Start.ZERO, "average": Start.MEAN, "duplicate": Start.COPY}
"""The ways in which the layers that make a stream can grow it, in the order of preference."""


class Join(Enum):
    """How the new channels of a block join in a statistic that all channels share."""

    APART = ""
    """There is no such statistic, or it stays as it is."""
    DILUTES = "dilutes"
    """They add nothing to a sum that is then divided by more channels."""
    REPEATS = "repeats"
    """They are copies, in a mean that is not over all channels: the sample's variance."""
    SHARES = "shares"
    """The readers have each channel several times over, so that each counts for less."""


@dataclass(frozen=True, slots=True)
class Joined:
    """One time that channels joined: how, and the numbers of channels before and after."""

    how: Join
    before: int
    after: int


@dataclass(frozen=True, slots=True)
class Carry:
    """Factors for older channels of a norm that restore its earlier output.

    Attributes:
        gain: For the weight.
        shift: For the bias.
        eps: For the number that is added to the statistic.
    """

    gain: float = 1.0
    shift: float = 1.0
    eps: float = 1.0

    @classmethod
    def over(cls, joined: Iterable[Joined], correction: int = 0) -> Carry:
        """The factors after channels have joined.

        Args:
            joined: Each time that channels have joined.
            correction: The number by which the number of channels is lowered in the statistic.

        Channels that add nothing to the sum of squares let it be divided by more. Weights smaller
        by the root of that factor, and an eps smaller by the factor, restore the earlier output
        (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467, equation 4, solved for the old
        width; for LayerNorm, where the new channels carry the mean of the old ones, Wang et al.
        2023, https://arxiv.org/abs/2310.07999, section 3.2).
        """
        gain = shift = eps = 1.0
        for one in joined:
            ratio = one.before / one.after
            if one.how is Join.SHARES:
                gain, shift = gain * ratio, shift * ratio
                continue
            counted = (one.before - correction) / (one.after - correction)
            ratio = counted / ratio if one.how is Join.REPEATS else counted
            gain, eps = gain * math.sqrt(ratio), eps * ratio
        return cls(gain, shift, eps)

    @property
    def inverse(self) -> Carry:
        """The factors that take these back."""
        return Carry(1 / self.gain, 1 / self.shift, 1 / self.eps)


UNCHANGED = Carry()
"""The factors where no channels have joined."""
