"""Tensors that a parametrization computes, without some channels: the parts of its own tensors.

Its own tensors lie as the one that they make. Their parts must make a part of that. Under weight
norm (Salimans and Kingma 2016, https://arxiv.org/abs/1602.07868, equation 2) a row without some
columns has another length, which its scale makes up for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.growth.shrinking.block_parts import Kept, part_at
from splitgrow.layers.types.parametrized_layers import PARAMETRIZATIONS, parametrizations_of

_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-5}
_ROUGH = 1e-2


@dataclass(frozen=True)
class ComputedPart:
    """One of the tensors from which a parametrization computes another.

    Attributes:
        path: Its path in the layer.
        holder: The module that has it.
        name: Its name there.
        kept: The positions of it that stay.
        values: The values that its part has then, where these are others.
    """

    path: str
    holder: nn.Module
    name: str
    kept: Kept
    values: Tensor | None = None


@torch.no_grad()
def computed_parts(module: nn.Module, name: str, kept: Kept) -> list[ComputedPart] | None:
    """The parts that stay of the tensors from which a tensor is computed; None if there are none.

    Args:
        module: The layer.
        name: The name of the computed tensor.
        kept: The positions of it that stay.
    """
    made: Any = parametrizations_of(module)[name]
    whole = getattr(module, name).detach()
    own: dict[str, Tensor] = {**made._parameters, **made._buffers}  # noqa: SLF001
    if any(True for step in made for _ in (*step.parameters(), *step.buffers())):
        return None  # they may lie in any way
    cut = {key: _lying_alike(tensor, whole, kept) for key, tensor in own.items()}
    parts = {k: part_at(t, at) for k, t in own.items() if (at := cut[k]) is not None}
    if len(parts) < len(own):
        return None
    expected = part_at(whole, kept)
    values = _values(made, parts, expected)
    if values is None:
        return None
    prefix = f"{PARAMETRIZATIONS}.{name}"
    return [
        ComputedPart(f"{prefix}.{key}", made, key, cut[key] or {}, values.get(key)) for key in own
    ]


def _lying_alike(tensor: Tensor, whole: Tensor, kept: Kept) -> Kept | None:
    """The positions of a tensor that stay if it lies as another one; None if it does not."""
    if not tensor.dim():  # one scale for all
        return {}
    pairs = list(zip(tensor.shape, whole.shape, strict=False))
    if tensor.dim() != whole.dim() or any(one not in {1, other} for one, other in pairs):
        return None
    return {dim: at for dim, at in kept.items() if tensor.shape[dim] == whole.shape[dim]}


def _values(
    made: Sequence[Any], parts: Mapping[str, Tensor], expected: Tensor
) -> dict[str, Tensor] | None:
    """The values that parts need, where these are others; None if no values are known."""
    if _makes(made, parts, expected):
        return {}
    if len(made) == 1 and _is_weight_norm(made[0]):
        scale, *_ = parts
        length = torch.norm_except_dim(expected, 2, made[0].dim)
        values = {scale: length * parts[scale].sign()}
        if _makes(made, {**parts, **values}, expected):
            return values
    return None


def _makes(made: Sequence[Any], parts: Mapping[str, Tensor], expected: Tensor) -> bool:
    """Whether a parametrization makes a tensor of some parts."""
    first, *others = made
    try:
        result = first(*parts.values())
        for step in others:
            result = step(result)
    except Exception:  # noqa: BLE001  # the user's code, with tensors of other shapes
        return False
    if not isinstance(result, Tensor) or result.shape != expected.shape:
        return False
    if expected.is_meta:
        return all(_is_weight_norm(step) for step in made)
    rounding = _ROUNDING.get(expected.dtype, _ROUGH) * float(expected.abs().max())
    return bool(((result - expected).abs() <= rounding).all())


def _is_weight_norm(step: nn.Module) -> bool:
    return type(step).__module__ == "torch.nn.utils.parametrizations" and (
        type(step).__name__ == "_WeightNorm"
    )
