"""Sequences of several lengths: padded to one, packed, and padded again."""

from __future__ import annotations

from typing import Any

import torch

from splitgrow.analysis.channels.channel_axes import constant
from splitgrow.analysis.ops.facts import FRESH
from splitgrow.analysis.ops.op import Op, Shaped, Unknown, constant_like
from splitgrow.analysis.ops.registry import entry

_KEPT = FRESH.but(zero=True)


@entry("torch._pack_padded_sequence", _KEPT)
def pack(op: Op) -> Any:
    """(time, batch, *) or (batch, time, *) to (steps of all sequences, *), and their numbers."""
    return _rearranged(op, op.x, 2)


@entry("torch._pad_packed_sequence", _KEPT)
def unpack(op: Op) -> Any:
    """(steps of all sequences, *) to (time, batch, *) or (batch, time, *), and the lengths."""
    made = _rearranged(op, op.x, 1)
    if op.argument(3, "padding_value", 0.0):
        op.not_zero(made)
    return made


def _rearranged(op: Op, x: Shaped, count: int) -> Any:
    """The first dimensions make others; the channels stay."""
    for axis in x.axes[:count]:
        op.fix(axis, "takes it for time or for a batch")
    example, *others = op.example
    return _of_shape(example, x, count), *(constant_like(each, "") for each in others)


def _of_shape(example: Any, x: Shaped, count: int) -> Shaped:
    kept = x.axes[count:]
    first = example.shape[: example.dim() - len(kept)]
    return Shaped((*(constant(int(size)) for size in first), *kept))


@entry("", _KEPT, torch._C._nn.pad_sequence)  # noqa: SLF001
def pad(op: Op) -> Any:
    """Sequences (time, *) of several lengths to one tensor (batch, time, *) or (time, batch, *)."""
    tensors = op.argument(0, "sequences")
    if not all(isinstance(each, Shaped) for each in tensors):
        raise Unknown("joins something else than a list of tensors")
    for each in tensors:
        op.fix(each.axes[0], "takes it for time")
        for axis, other in zip(tensors[0].axes[1:], each.axes[1:], strict=True):
            op.groups.tie(axis, other, op.reason("ties it to a size that does not change"))
    made = _of_shape(op.example, tensors[0], 1)
    if op.argument(2, "padding_value", 0.0):
        op.not_zero(made)
    return made
