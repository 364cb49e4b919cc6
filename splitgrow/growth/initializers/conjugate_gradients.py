"""Solving symmetric, positive systems of which only the products are known."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_SOLVING = 20
"""The most steps of conjugate gradients."""
_DAMPING = 1e-4
"""Added to the matrix, relative to its size along the right side."""


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, steps: int = _SOLVING
) -> Tensor:
    """The solution of a symmetric, positive system, by its products.

    Args:
        product: The product with the matrix, linear, for tensors of any shape.
        right: The right side.
        steps: The most steps.
    """
    squares = inner_product(right, right)
    if squares == 0.0:
        return torch.zeros_like(right)
    damping = _DAMPING * inner_product(right, product(right)) / squares
    found, rest, way, left = torch.zeros_like(right), right.clone(), right.clone(), squares
    for _ in range(steps):
        moved = product(way) + damping * way
        curved = inner_product(way, moved)
        if curved <= 0.0:
            break
        length = left / curved
        found = found + length * way
        rest = rest - length * moved
        now = inner_product(rest, rest)
        if now <= 1e-20 * squares:
            break
        way = rest + (now / left) * way
        left = now
    return found


def inner_product(one: Tensor, other: Tensor) -> float:
    """The inner product of two tensors, in float64."""
    return float((one.double() * other.double()).sum())
