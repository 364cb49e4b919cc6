"""Products of activations: attention, matrix products, einsum."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch.nn import functional as F

from splitgrow.axes import Axis, scaled
from splitgrow.rules.elementwise import broadcast
from splitgrow.rules.registry import Op, Shaped, Unknown, register_op

_SUMS = "sums over it, so that new channels would change the old result"


@register_op(
    torch.matmul, torch.bmm, "matmul", "bmm", "__matmul__", torch.mm, "mm", keeps_zeros=True
)
@register_op("__rmatmul__", keeps_zeros=True)
def matmul(op: Op) -> Any:
    """What is summed over cannot grow, the rest passes; the dimensions before are broadcast."""
    left, right = op.argument(0, "input"), op.argument(1, "other", op.argument(1, "mat2"))
    if op.target == "__rmatmul__":
        left, right = right, left
    if not (isinstance(left, Shaped) and isinstance(right, Shaped)):
        raise Unknown("multiplies something else than tensors")
    if min(len(left.axes), len(right.axes)) < 2:
        raise Unknown("multiplies a matrix by a vector")
    for axis in (left.axes[-1], right.axes[-2]):
        op.fix(axis, _SUMS)
    before = [tensor.axes[:-2] for tensor in (left, right)]
    batch = broadcast(op, before) if any(before) else ()
    return Shaped((*batch, left.axes[-2], right.axes[-1]))


@register_op(F.scaled_dot_product_attention, keeps_zeros=True)
def attention(op: Op) -> Any:
    """(..., L, E), (..., S, E), (..., S, V) to (..., L, V): heads pass."""
    query, key, value = (op.argument(i, n) for i, n in enumerate(("query", "key", "value")))
    if not all(isinstance(tensor, Shaped) for tensor in (query, key, value)):
        raise Unknown("is given something else than tensors")
    for axis in (query.axes[-1], key.axes[-1], key.axes[-2], value.axes[-2], query.axes[-2]):
        op.fix(axis, _SUMS)
    mask = op.argument(3, "attn_mask")
    if op.kwargs.get("enable_gqa"):
        key, value = (_repeated(op, tensor, query.axes[-3]) for tensor in (key, value))
    scores = [tensor.axes[:-2] for tensor in (query, key, value)]
    scores += [mask.axes[:-2]] if isinstance(mask, Shaped) else []
    batch = broadcast(op, [axes for axes in scores if axes])
    return Shaped((*batch, query.axes[-2], value.axes[-1]))


def _repeated(op: Op, tensor: Shaped, heads: Axis) -> Shaped:
    """Keys or values whose heads each serve several neighbouring heads of the queries."""
    own = tensor.axes[-3]
    count = op.groups.length(heads) // op.groups.length(own)
    return Shaped((*tensor.axes[:-3], scaled(own, count), *tensor.axes[-2:]))


@register_op(torch.einsum, keeps_zeros=True)
def einsum(op: Op) -> Any:
    """Letters that are summed over cannot grow; the others tie what they name."""
    equation, operands = op.args[0], op.args[1:]
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    if not isinstance(equation, str) or "->" not in equation:
        raise Unknown("is not written as `...->...`")
    if not all(isinstance(operand, Shaped) for operand in operands):
        raise Unknown("is given something else than tensors")
    inputs, output = equation.replace(" ", "").split("->")
    named: dict[str, list[Axis]] = {}
    for letters, operand in zip(inputs.split(","), operands, strict=True):
        names = _spelled_out(letters, len(operand.axes))
        for letter, axis in zip(names, operand.axes, strict=True):
            named.setdefault(letter, []).append(axis)
    ndim = op.example.dim()
    kept = _spelled_out(output, ndim)
    result = {
        letter: broadcast(op, [(axis,) for axis in axes])[0] for letter, axes in named.items()
    }
    for letter in named.keys() - set(kept):
        for axis in named[letter]:
            op.fix(axis, _SUMS)
    return Shaped(tuple(op.groups.resolve(result[letter]) for letter in kept))


def _spelled_out(letters: str, ndim: int) -> list[str]:
    """One name for each dimension; those of an ellipsis are counted from behind."""
    if "..." not in letters:
        return list(letters)
    before, behind = letters.split("...")
    count = ndim - len(before) - len(behind)
    middle = (f"...{index}" for index in range(-count, 0))
    return list(itertools.chain(before, middle, behind))
