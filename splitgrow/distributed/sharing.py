"""Values that every process gets: the first one's, or the mean over all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.distributed as dist
from torch import Tensor

from splitgrow.distributed.agreement import Agreement, Ballot
from splitgrow.growth.edits import Edit


def _sendable(tensor: Tensor, agreement: Agreement) -> Tensor:
    """A tensor's values where the processes' backend can send them; maybe the tensor's own."""
    backend = str(dist.get_backend(agreement.group))
    value = tensor.detach().contiguous()
    return value.cuda() if "nccl" in backend and "gloo" not in backend else value


@torch.no_grad()
def mean_over(agreement: Agreement, tensor: Tensor) -> Tensor:
    """The mean of a tensor over the processes.

    Raises:
        DistributedError: If one of them does not come to this point, or has another tensor there.
    """
    like = f"a tensor of the shape {tuple(tensor.shape)}, {tensor.dtype}"
    agreement.vote(agreement.step, Ballot({"average": like}))
    value = _sendable(tensor, agreement).clone()
    dist.all_reduce(value, group=agreement.group)
    return (value / dist.get_world_size(agreement.group)).to(tensor.device)


@torch.no_grad()
def share_(tensors: Sequence[Tensor], agreement: Agreement) -> None:
    """Gives every process the first one's values."""
    for tensor in tensors:
        value = _sendable(tensor, agreement)
        dist.broadcast(value, src=agreement.source, group=agreement.group)
        if value.data_ptr() != tensor.data_ptr():
            tensor.copy_(value)


def measured_alike(edits: Sequence[Edit], agreement: Agreement) -> list[Edit]:
    """The edits, with the numbers that the first process has measured, which may be none.

    All processes send as much: one may have measured a change of the outputs where the other saw
    nothing but rounding.
    """
    none = float("nan")
    numbers = [
        none if number is None else number
        for edit in edits
        for number in (edit.moved, *(edit.loss or (None, None)))
    ]
    held = torch.tensor(numbers, dtype=torch.float64)
    share_([held] if numbers else [], agreement)
    found = []
    for edit, (moved, before, after) in zip(edits, held.view(-1, 3).tolist(), strict=True):
        loss = None if edit.loss is None else (before, after)
        found.append(replace(edit, moved=None if math.isnan(moved) else moved, loss=loss))
    return found
