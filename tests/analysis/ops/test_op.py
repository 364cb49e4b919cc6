"""Arguments by every name and in every form that torch takes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from between import IMAGES, ROWS, convs_between, growth_of, linear_between
from torch import Tensor, nn
from torch.nn import functional as F

Op = Callable[[Any, Tensor], Tensor]


def written_into(h: Tensor) -> Tensor:
    made = torch.empty_like(h)
    torch.add(h, h, out=made)
    return made * 2


def largest_written_into(h: Tensor) -> Tensor:
    values, indices = torch.empty_like(h[0]), torch.empty_like(h[0]).long()
    torch.max(h, 0, out=(values, indices))
    return h - values


PASSING: dict[str, Op] = {
    "cat axis": lambda m, h: torch.cat([h, h.tanh()], axis=1),
    "cat tensors": lambda m, h: torch.cat(tensors=[h, h.tanh()], dim=-1),
    "concat axis": lambda m, h: torch.concat((h, h), axis=1),
    "stack axis": lambda m, h: torch.stack([h, h], axis=0).sum(axis=0),
    "sum axis": lambda m, h: h - h.sum(axis=0),
    "sum keepdims": lambda m, h: h - torch.sum(h, axis=0, keepdims=True),
    "mean axis keepdims": lambda m, h: h - h.mean(axis=0, keepdims=True),
    "sum of x": lambda m, h: h - torch.sum(x=h, dim=0),
    "add of x1 and x2": lambda m, h: torch.add(x1=h, x2=h),
    "maximum of inputs": lambda m, h: torch.maximum(input=h, other=-h),
    "softmax axis": lambda m, h: torch.softmax(h, axis=0),
    "flip dims": lambda m, h: torch.flip(h, dims=(0,)),
    "flip in a list": lambda m, h: h.flip([0]),
    "flip one": lambda m, h: h.flip(0),
    "chunk axis": lambda m, h: torch.mul(*h.chunk(2, axis=1)),
    "split axis": lambda m, h: torch.cat(h.split(2, dim=0)[::-1]),
    "squeeze axis": lambda m, h: h.unsqueeze(axis=1).squeeze(axis=1),
    "squeeze several": lambda m, h: h[:, None, :, None].squeeze((1, 3)),
    "unbind axis": lambda m, h: h.unbind(axis=0)[0] + h,
    "amax of a tuple": lambda m, h: h - h[None].amax(dim=(0, 1)),
    "var unbiased": lambda m, h: h - h.var(0, False),
    "var unbiased and kept": lambda m, h: h - h.var(0, True, True),
    "std correction": lambda m, h: h - h.std(dim=0, correction=0),
    "std_mean": lambda m, h: h - torch.std_mean(h, 0)[1],
    "norm of an order": lambda m, h: h - h.norm(2, 0),
    "norm by names": lambda m, h: h - torch.norm(h, p=2, dim=0, keepdim=True),
    "logsumexp": lambda m, h: h - h.logsumexp(0, True),
    "median": lambda m, h: h - h.median(0)[0],
    "quantile": lambda m, h: h - h.quantile(0.5, 0),
    "kthvalue": lambda m, h: h - h.kthvalue(2, 0)[0],
    "normalize": lambda m, h: F.normalize(h, 2, 0),
    "gumbel": lambda m, h: h + 0 * F.gumbel_softmax(h, 1.0, False, 1e-10, 0),
    "permute one by one": lambda m, h: h.permute(1, 0).permute((1, 0)),
    "swapaxes": lambda m, h: h.swapaxes(0, 1).swapdims(0, 1),
    "swapaxes by names": lambda m, h: torch.swapaxes(h, axis0=0, axis1=1).t(),
    "movedim": lambda m, h: torch.movedim(h, source=0, destination=1).T,
    "repeat one by one": lambda m, h: h.repeat(2, 1),
    "tile": lambda m, h: h.tile(2),
    "tile of a tuple": lambda m, h: torch.tile(h, (2, 1)),
    "expand_as": lambda m, h: h[:1].expand_as(h),
    "expand of ones to the width": lambda m, h: h * h.new_ones(1).expand_as(h),
    "expand of a column to the width": lambda m, h: (
        h * torch.ones(5, 1).double().expand(5, h.size(1))
    ),
    "broadcast_tensors": lambda m, h: torch.mul(*torch.broadcast_tensors(h, h[:1])),
    "view_as": lambda m, h: h.unsqueeze(0).view_as(h),
    "reshape_as": lambda m, h: h.t().reshape_as(h.t()).t(),
    "out": lambda m, h: written_into(h),
    "tuple of out": lambda m, h: largest_written_into(h),
    "max of two": lambda m, h: torch.max(h, other=h.tanh()),
    "min of two": lambda m, h: h.min(-h),
    "matrix and vector": lambda m, h: h * torch.mv(h.t(), torch.ones(5).double()),
    "vector and matrix": lambda m, h: h + torch.ones(5).double() @ h,
    "addmm": lambda m, h: torch.addmm(h, torch.eye(5).double(), mat2=h),
    "baddbmm": lambda m, h: torch.baddbmm(h[None], torch.eye(5).double()[None], h[None])[0],
    "tensordot": lambda m, h: torch.tensordot(torch.eye(5).double(), h, dims=([1], [0])),
    "einsum without an arrow": lambda m, h: torch.einsum("ij,jk", torch.eye(5).double(), h),
    "einsum in a list": lambda m, h: torch.einsum("ij,jk->ik", [torch.eye(5).double(), h]),
    "outer": lambda m, h: torch.outer(torch.ones(5).double(), h.sum(0)),
    "cosine of rows": lambda m, h: h * F.cosine_similarity(h, h.flip(0), dim=0),
    "functional embedding": lambda m, h: (
        h[:2] + m.extra(F.embedding(torch.tensor([1, 0]), m.table))
    ),
    "fft of rows": lambda m, h: torch.fft.fft(h, dim=0).real,
    "number by number": lambda m, h: h * torch.mul(torch.tensor(2.0), 3).double(),
    "two numbers": lambda m, h: h[: int(torch.div(h.size(0), 2, rounding_mode="trunc"))],
    "where of numbers": lambda m, h: torch.where(h > 0, 1.0, 0.5) * h,
    "clamp by names": lambda m, h: torch.clamp(input=h, min=-1, max=1),
    "cumsum in place": lambda m, h: h.clone().cumsum_(0),
}

MIXING: dict[str, Op] = {
    "sum axis": lambda m, h: h / h.sum(axis=1, keepdims=True),
    "softmax axis": lambda m, h: torch.softmax(h, axis=1),
    "flip one by one": lambda m, h: h.flip(0, 1),
    "cat axis with the rows": lambda m, h: torch.cat([h, torch.ones(1, 8).double()], axis=0),
    "norm of an order": lambda m, h: h - h.norm(1, 1, True),
    "var of all": lambda m, h: h / h.var(False),
    "gumbel": lambda m, h: F.gumbel_softmax(h, 1, False).detach() * 0 + h.softmax(1),
    "normalize": lambda m, h: F.normalize(h),
    "out of a written width": lambda m, h: torch.add(h, 1, out=torch.zeros(5, 8).double()),
    "numel": lambda m, h: h / h.numel(),
    "addmv": lambda m, h: torch.addmv(h.sum(1), h, torch.ones(8).double())[:, None],
    "einsum without an arrow": lambda m, h: torch.einsum("ij,kj", h, h),
    "tensordot": lambda m, h: torch.tensordot(h, h, dims=([1], [1])),
    "cosine": lambda m, h: h * F.cosine_similarity(h, h + 1)[:, None],
    "cdist": lambda m, h: torch.cdist(h, h + 1),
    "fft": lambda m, h: torch.fft.fft(h).real,
    "batch norm over transposed": lambda m, h: F.batch_norm(h.t(), None, None, training=True).t(),
    "functional linear": lambda m, h: F.linear(h, m.table.abs()),
    "functional bilinear": lambda m, h: F.bilinear(h, h, m.cube),
    "len of the transposed": lambda m, h: h / len(h.t()),
}


def extras() -> dict[str, Any]:
    torch.manual_seed(3)
    table, cube = torch.randn(8, 8).double(), torch.randn(3, 8, 8).double()
    return {
        "table": nn.Parameter(table),
        "cube": nn.Parameter(cube),
        "extra": nn.Linear(8, 8).double(),
    }


looks = pytest.mark.parametrize("looks", [False, True], ids=["without values", "on values"])


@looks
@pytest.mark.parametrize("name", PASSING)
def test_rows_may_be_worked_on_by_any_name_of_an_argument(name: str, looks: bool) -> None:
    torch.manual_seed(0)
    network = linear_between(PASSING[name], also=extras(), looks=looks)
    if name == "gumbel":  # what is random is drawn anew: zero times it is all that can be compared
        torch.manual_seed(0)
    assert growth_of(network, ROWS) == ""


@looks
@pytest.mark.parametrize("name", MIXING)
def test_control_columns_that_are_mixed_by_any_name_cannot_grow(name: str, looks: bool) -> None:
    assert growth_of(linear_between(MIXING[name], also=extras(), looks=looks), ROWS)


IMAGES_TOO: dict[str, Op] = {
    "mean of two": lambda m, h: h - h.mean((2, 3), True),
    "flip of space one by one": lambda m, h: h.flip(2, 3),
    "roll of space": lambda m, h: torch.roll(h, shifts=(1, 2), dims=(2, 3)),
    "instance norm": lambda m, h: F.relu(h),
    "grid_sample": lambda m, h: F.grid_sample(
        h, torch.zeros(2, 4, 4, 2).double(), align_corners=False
    ),
    "unpooled": lambda m, h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2),
    "prelu of one slope": lambda m, h: F.prelu(h, m.slope),
    "pad of space": lambda m, h: F.pad(h, (1, 1, 1, 1), mode="reflect"),
    "interpolate": lambda m, h: F.interpolate(h, size=(6, 6), mode="bilinear"),
    "rot90 of space": lambda m, h: h.rot90(1, (2, 3)),
    "fft2": lambda m, h: torch.fft.irfft2(torch.fft.rfft2(h, norm="ortho"), s=(4, 4)),
    "tril of space": lambda m, h: h.tril(),
}


@looks
@pytest.mark.parametrize("name", IMAGES_TOO)
def test_space_may_be_worked_on_by_any_name_of_an_argument(name: str, looks: bool) -> None:
    also = {"slope": nn.Parameter(torch.full((1,), 0.3).double())}
    assert growth_of(convs_between(IMAGES_TOO[name], also=also, looks=looks), IMAGES) == ""
