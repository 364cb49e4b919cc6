"""Folding a norm with fixed statistics into the weight before it: pure functions on tensors."""

from __future__ import annotations

import torch
from torch import Tensor


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


def scale_outputs(weight: Tensor, scale: Tensor, dim: int, groups: int) -> Tensor:
    """A weight whose outputs are scaled, in float64.

    Args:
        weight: (out, in // groups, *kernel), or of a transposed convolution
            (in, out // groups, *kernel).
        scale: (out,).
        dim: The dimension that runs along the outputs: 0, or 1 if transposed.
        groups: The number of groups.
    """
    if dim == 0:
        return weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))
    inputs, outputs = weight.shape[:2]
    # (groups, in // groups, out // groups, *kernel)
    apart = weight.double().reshape(groups, inputs // groups, outputs, *weight.shape[2:])
    apart = apart * scale.reshape(groups, 1, outputs, *[1] * (weight.dim() - 2))
    return apart.reshape(weight.shape)
