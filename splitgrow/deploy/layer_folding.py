"""Folding a batch norm into the one layer before it, where the layer's type allows that."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from splitgrow.layers.norm_folding import norm_scale_and_shift, scale_outputs_
from splitgrow.layers.types import layer_type_of

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""The types of norms that are folded."""


def has_statistics(norm: Any) -> bool:
    """Whether a module is a batch norm of torch's that goes by its running statistics."""
    return type(norm) in NORMS and norm.running_mean is not None and norm.running_var is not None


def can_take_a_norm(layer: Any, dims: int, norm: Any) -> bool:
    """Whether a norm with statistics can become part of a layer.

    Args:
        layer: The layer.
        dims: The number of dimensions of its output.
        norm: The norm that reads it.
    """
    entry = layer_type_of(layer)
    if entry is None or not entry.sized or entry.merging.computes_weight:
        return False
    # A weight that weight norm or pruning computes before each call would be computed anew.
    own = layer._parameters  # noqa: SLF001
    if own.get("weight") is None or (layer.bias is not None and own.get("bias") is None):
        return False
    # The two must mean the same dimension by "channels": those of a Linear are on the last one.
    return entry.channel_dim(layer) % dims == 1 and bool(entry.sizes(layer)[1] == norm.num_features)


def fold_norm_(layer: Any, norm: Any, *, shared: bool) -> None:
    """Folds a norm into a layer, in place unless the weight's memory belongs to others too."""
    scale, shift = norm_scale_and_shift(
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )
    if shared:
        layer.weight = nn.Parameter(layer.weight.detach().clone(), layer.weight.requires_grad)
    weight: nn.Parameter = layer.weight
    bias: nn.Parameter | None = layer.bias
    groups = int(getattr(layer, "groups", 1))
    dim = int("Transpose" in type(layer).__name__)
    with torch.no_grad():
        scale_outputs_(weight.data, scale, dim, groups)
        shifted = shift if bias is None else bias.double() * scale + shift
        layer.bias = nn.Parameter(shifted.to(weight.dtype), weight.requires_grad)
