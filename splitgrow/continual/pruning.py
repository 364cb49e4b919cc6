"""Pruning single weights by magnitude: at once, or little by little during training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def keep_largest(values: Tensor, mask: Tensor, keep: int) -> Tensor:
    """The part of a mask with the largest values by magnitude.

    Args:
        values: The weights.
        mask: The weights to choose from.
        keep: The number that stay; all if there are no more.

    Returns:
        A mask of `keep` weights. Among equal magnitudes the first ones stay.
    """
    keep = max(0, keep)
    if keep >= int(mask.sum()):
        return mask.clone()
    magnitudes = values.detach().abs().flatten()
    magnitudes = torch.where(mask.flatten(), magnitudes, torch.full_like(magnitudes, -1.0))
    chosen = magnitudes.sort(descending=True, stable=True).indices[:keep]
    kept = torch.zeros(mask.numel(), dtype=torch.bool, device=mask.device)
    kept[chosen] = True
    return kept.reshape(mask.shape)


@dataclass(frozen=True)
class GradualPruning:
    r"""A cubic schedule of sparsity (Zhu & Gupta, To prune, or not to prune, equation 1).

    .. math:: s_\tau = s_f + (s_i - s_f) (1 - \tau / n)^3

    Attributes:
        initial: The share of weights that is pruned already.
        target: The share at the end.
        steps: The number of training steps to reach it.
        every: The number of steps from one pruning to the next.

    Example:
        >>> from splitgrow.continual import GradualPruning
        >>> schedule = GradualPruning(initial=0.0, target=0.8, steps=100, every=10)
        >>> [round(schedule.sparsity(step), 2) for step in (0, 10, 50, 100, 200)]
        [0.0, 0.22, 0.7, 0.8, 0.8]
    """

    initial: float
    target: float
    steps: int
    every: int = 10

    def __post_init__(self) -> None:
        if not 0 <= self.initial <= self.target < 1:
            raise ValueError(
                f"sparsity must rise within 0 and 1, got {self.initial} to {self.target}"
            )
        if self.steps < 1 or self.every < 1:
            raise ValueError("steps and every must be at least 1")

    def sparsity(self, step: int) -> float:
        """The share of weights that is pruned after a step."""
        left = 1 - min(1.0, max(0.0, step / self.steps))
        return self.target + (self.initial - self.target) * left**3

    def due(self, step: int) -> bool:
        """Whether more is to be pruned after a step."""
        return 0 < step <= self.steps and (step % self.every == 0 or step == self.steps)
