"""Folding a norm with fixed statistics into the weight before it: pure functions on tensors."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = 2**17
"""Elements that are converted at a time: 1 MiB in float64."""


def norm_scale_and_shift(
    mean: Tensor, var: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """A batch norm in evaluation mode as ``x * scale + shift``, both (C,) in float64."""
    scale = torch.rsqrt(var.double() + eps)
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    if bias is not None:
        shift = shift + bias.double()
    return scale, shift


def scale_outputs_(weight: Tensor, scale: Tensor, dim: int, groups: int) -> None:
    """Scales the outputs of a weight in place, rounding once, from float64.

    It works a few rows at a time, so that a large weight needs no second copy.

    Args:
        weight: (out, in // groups, *kernel), or of a transposed convolution
            (in, out // groups, *kernel).
        scale: (out,) in float64.
        dim: The dimension that runs along the outputs: 0, or 1 if transposed.
        groups: The number of groups.
    """
    rows = len(weight)
    step = max(1, _AT_ONCE * rows // max(1, weight.numel()))
    size = max(_AT_ONCE, weight.numel() // max(1, rows))  # one row at least
    buffer = torch.empty(size, dtype=torch.float64, device=weight.device)
    for start in range(0, rows, step):
        part = weight[start : start + step]
        if dim == 0:
            own = scale[start : start + step].reshape(-1, *[1] * (weight.dim() - 1))
        else:  # the rows are inputs, and those of a group share its outputs' scales
            of_groups = scale.reshape(groups, -1)
            which = torch.arange(start, start + len(part), device=scale.device) * groups // rows
            own = of_groups[which].reshape(len(part), -1, *[1] * (weight.dim() - 2))
        room = buffer[: part.numel()].view(part.shape)
        part.copy_(room.copy_(part).mul_(own))
