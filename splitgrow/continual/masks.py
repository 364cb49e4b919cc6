r"""Masks on single weights: their owners, the picked ones, and the tensor that a task sees.

The values of a shared tensor, the numbers of its weights' owners, and a later task's picks make the
tensor that the task sees:

.. math:: W_t = W \odot [o = t] + W \odot [0 < o < t] \odot M_t

with the owners :math:`o` (0: nobody's yet) and the picks :math:`M_t` in {0, 1}, or in {-1, 0, 1}.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

Picks: TypeAlias = Literal["binary", "ternary"]
"""The values of a pick: 0 or 1, or -1, 0 or 1, made of a real-valued score."""

SCORE, THRESHOLD = 0.01, 0.005
"""The first scores, and the score above which a weight is picked (Piggyback, section 4)."""


def no_owners(tensor: Tensor) -> Tensor:
    """The owners of a tensor with free weights only: one byte for each."""
    return torch.zeros(tensor.shape, dtype=torch.uint8, device=tensor.device)


def owned_by(owners: Tensor, mask: Tensor, task: int) -> Tensor:
    """The owners, once a task owns the weights in a mask; two bytes each from task 256 on."""
    if task > torch.iinfo(owners.dtype).max:
        owners = owners.to(torch.int16)
    return torch.where(mask, torch.full_like(owners, task), owners)


def picked(scores: Tensor, picks: Picks, threshold: float = THRESHOLD) -> Tensor:
    """The picks of scores: 0 or 1 for each, or -1, 0 or 1; in the scores' dtype."""
    chosen = (scores > threshold).to(scores.dtype)
    if picks == "ternary":
        chosen -= (scores < -threshold).to(scores.dtype)
    return chosen


class _Seen(Function):
    """The tensor that a task sees while it is learned; see `seen`.

    Straight through: the scores receive the gradient of their picks as if it were their own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        own: Tensor | None,
        mine: Tensor | None,
        base: Tensor,
        scores: Tensor | None,
        how: tuple[Picks, float],
    ) -> Tensor:
        seen = base if scores is None else base * picked(scores, *how)
        if own is not None and mine is not None:
            seen = torch.where(mine, own, seen)
        ctx.save_for_backward(mine, base if scores is not None else None)
        return seen.clone() if seen is base else seen

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (of_seen,) = gradients
        mine, base = ctx.saved_tensors
        of_own = of_seen * mine if ctx.needs_input_grad[0] else None
        of_scores = None
        if ctx.needs_input_grad[3]:
            of_scores = of_seen * base
            if mine is not None:
                of_scores = torch.where(mine, torch.zeros_like(of_scores), of_scores)
        return of_own, None, None, of_scores, None


def seen(
    own: Tensor | None,
    mine: Tensor | None,
    base: Tensor,
    scores: Tensor | None,
    how: tuple[Picks, float] = ("binary", THRESHOLD),
) -> Tensor:
    """A shared tensor as a task sees it while it is learned, differentiable.

    Args:
        own: The task's own values; None if it has none here.
        mine: Where these are seen. Values elsewhere in `own` have no effect, and receive no
            gradient: neither momentum nor weight decay can change weights of other tasks.
        base: The values of earlier tasks' weights; zeros elsewhere.
        scores: Real-valued scores, one for each weight; None to see all of `base`.
        how: The form of the picks, and the threshold above which scores pick.
    """
    result: Tensor = _Seen.apply(own, mine, base, scores, how)  # type: ignore[no-untyped-call]
    return result


def packed(picks: Tensor) -> Tensor:
    """Picks in one bit each, or two if there are -1: a tensor of bytes."""
    flat = picks.detach().reshape(-1).to(torch.int8)
    halves = [flat > 0, flat < 0] if bool((flat < 0).any()) else [flat > 0]
    return torch.stack([_bits(half) for half in halves])


def unpacked(packed: Tensor, shape: torch.Size) -> Tensor:
    """The picks that were packed, as int8.

    Raises:
        ValueError: If there are not as many.
    """
    if packed.dim() != 2 or len(packed) not in {1, 2} or packed.shape[1] != -(-shape.numel() // 8):
        raise ValueError(f"{tuple(packed.shape)} bytes are no picks of {tuple(shape)} weights")
    steps = torch.arange(8, device=packed.device, dtype=torch.uint8)
    bits = (packed[:, :, None] >> steps).bitwise_and(1).flatten(1)[:, : shape.numel()]
    bits = bits.to(torch.int8)
    return (bits[0] - bits[1] if len(bits) == 2 else bits[0]).reshape(shape)


def _bits(mask: Tensor) -> Tensor:
    padded = torch.zeros(-(-mask.numel() // 8) * 8, dtype=torch.uint8, device=mask.device)
    padded[: mask.numel()] = mask.to(torch.uint8)
    powers = 2 ** torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (padded.reshape(-1, 8) * powers).sum(1, dtype=torch.uint8)
