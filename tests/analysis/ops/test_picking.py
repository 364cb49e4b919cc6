"""Positions read and written by slices, masks and indices: the other dimensions stay free."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from between import IMAGES, ROWS, convs_between, growth_of, linear_between
from torch import Tensor

Op = Callable[[Any, Tensor], Tensor]

MASK = torch.tensor([True, False, True, True, False])
INDEX = torch.tensor([2, 0, 0])


def put(h: Tensor, index: Any, value: Any) -> Tensor:
    h = h.clone()
    h[index] = value
    return h


def with_rows(h: Tensor) -> Tensor:
    made = torch.zeros_like(h)
    made[INDEX[:2]] = h[:2]
    made[3:] += h[:2]
    return made


def into_new_rows(h: Tensor) -> Tensor:
    return h.new_zeros(7, h.size(1)).index_add(0, torch.tensor([6, 0, 0, 3, 2]), h)


def gathered(h: Tensor) -> Tensor:
    index = torch.tensor([[4], [0], [0]]).expand(3, h.size(1))
    return h.gather(0, index)


def scattered(h: Tensor) -> Tensor:
    index = torch.tensor([0, 2, 1, 4, 3]).unsqueeze(1).expand_as(h)
    return torch.zeros_like(h).scatter(0, index, h)


ROW_PICKS: dict[str, Op] = {
    "mask": lambda m, h: h[MASK],
    "mask made of the rows": lambda m, h: h[torch.arange(5) > 1],
    "indices": lambda m, h: h[INDEX],
    "list": lambda m, h: h[[4, 0, 4]],
    "list of truth values": lambda m, h: h[[True, False, True, True, False]],
    "range": lambda m, h: h[range(1, 4)],
    "indices and all columns": lambda m, h: h[INDEX, :],
    "indices and an ellipsis": lambda m, h: h[INDEX, ...],
    "indices of two dimensions": lambda m, h: h[torch.tensor([[0, 1], [3, 2]])].sum(1),
    "index of no dimensions": lambda m, h: h[torch.tensor(3)],
    "new dimension": lambda m, h: h[None, MASK][0],
    "row by a number": lambda m, h: h[0] + h[-1],
    "mask of a buffer": lambda m, h: h[m.mask],
    "index_select": lambda m, h: h.index_select(0, INDEX),
    "torch.index_select by names": lambda m, h: torch.index_select(h, dim=0, index=INDEX),
    "index_add": lambda m, h: torch.zeros_like(h).index_add(0, INDEX, h[:3]),
    "index_add into new rows": lambda m, h: into_new_rows(h),
    "index_add_": lambda m, h: h.clone().index_add_(0, INDEX, h[:3], alpha=2),
    "index_copy": lambda m, h: h.index_copy(0, INDEX[:2], h[3:]),
    "index_fill": lambda m, h: h.index_fill(0, INDEX, 0.5),
    "index_put": lambda m, h: h.index_put((INDEX[:2],), h[3:]),
    "index_put_ adding": lambda m, h: h.clone().index_put_((INDEX,), h[:3], accumulate=True),
    "gather": lambda m, h: gathered(h),
    "scatter": lambda m, h: scattered(h),
    "scatter_add": lambda m, h: h.scatter_add(0, INDEX[:, None].expand(3, h.size(1)), h[:3]),
    "take_along_dim": lambda m, h: torch.take_along_dim(h, INDEX.unsqueeze(1), 0),
    "slice written": lambda m, h: put(h, slice(2), h[3:]),
    "rows written by a number": lambda m, h: put(h, 1, h[2]),
    "number written": lambda m, h: put(h, slice(2), 0.0),
    "rows written by a mask": lambda m, h: put(h, MASK, h[:3]),
    "number written by a mask": lambda m, h: put(h, MASK, 1.5),
    "rows written by indices": lambda m, h: with_rows(h),
    "column of ones written": lambda m, h: put(h, INDEX, torch.ones(3, 1).double()),
    "select_scatter": lambda m, h: h.select_scatter(h[0], 0, 3),
    "slice_scatter": lambda m, h: h.slice_scatter(h[:2], 0, 1, 3),
    "unfold": lambda m, h: h.unfold(0, 2, 1).sum(-1),
    "topk": lambda m, h: h.topk(2, dim=0)[0],
    "sort of rows": lambda m, h: h.sort(0, descending=True).values,
    "sort that says so": lambda m, h: torch.sort(h, stable=True, dim=0)[0],
    "roll": lambda m, h: h.roll(2, 0),
    "flip": lambda m, h: h.flip(0),
    "cumsum": lambda m, h: h.cumsum(0),
    "diff": lambda m, h: h.diff(dim=0),
}

COLUMN_PICKS: dict[str, Op] = {
    "indices": lambda m, h: h[:, INDEX],
    "mask": lambda m, h: h[:, torch.arange(h.size(1)) > 2],
    "mask of the whole": lambda m, h: h[h > 0][:3] * h[:, :3],
    "mask of values, written": lambda m, h: put(h, h > h.mean(), 0.0),
    "index_select": lambda m, h: h.index_select(1, INDEX),
    "gather": lambda m, h: h.gather(1, INDEX.expand(5, 3)),
    "gather of fewer rows": lambda m, h: h.gather(0, torch.zeros(2, 8).long()),
    "scatter": lambda m, h: h.scatter(1, INDEX[:, None], 2.0),
    "take": lambda m, h: h.take(INDEX).expand(5, 3),
    "masked_select": lambda m, h: h[:, :4] * h.masked_select(h > -9)[:4],
    "take_along_dim": lambda m, h: torch.take_along_dim(h, h.argsort(1), 1),
    "last column": lambda m, h: h[:, -1:] + h,
    "flip of both": lambda m, h: h.flip(0, 1),
    "flip of a tuple": lambda m, h: torch.flip(h, (0, 1)),
    "roll of both": lambda m, h: h.roll((1, 2), (0, 1)),
    "roll of all": lambda m, h: h.roll(3),
    "topk": lambda m, h: h.topk(3)[0],
    "cummax": lambda m, h: h.cummax(1)[0],
    "sort": lambda m, h: h.sort()[0],
    "rot90": lambda m, h: h.rot90(2),
    "diff": lambda m, h: h.diff(),
    "softmax": lambda m, h: h.softmax(-1),
    "gumbel softmax": lambda m, h: torch.nn.functional.gumbel_softmax(h, 1).detach() * 0 + h,
    "unfold": lambda m, h: h.unfold(1, 2, 2).sum(-1),
}


@pytest.mark.parametrize("looks", [False, True], ids=["without values", "on values"])
@pytest.mark.parametrize("name", ROW_PICKS)
def test_picking_rows_leaves_columns_free(name: str, looks: bool) -> None:
    network = linear_between(ROW_PICKS[name], also={"mask": MASK}, looks=looks)
    assert growth_of(network, ROWS) == ""


@pytest.mark.parametrize("looks", [False, True], ids=["without values", "on values"])
@pytest.mark.parametrize("name", COLUMN_PICKS)
def test_picking_columns_keeps_them_from_growing_or_growth_changes_nothing(
    name: str, looks: bool
) -> None:
    reason = growth_of(linear_between(COLUMN_PICKS[name], looks=looks), ROWS)
    assert reason == "" or "test_picking.py" in reason


@pytest.mark.parametrize("name", ["indices", "flip of both", "gather", "roll of all", "topk"])
def test_control_picking_columns_by_number_cannot_grow(name: str) -> None:
    assert growth_of(linear_between(COLUMN_PICKS[name], looks=True), ROWS)


IMAGE_PICKS: dict[str, Op] = {
    "mask over space": lambda m, h: h[:, :, torch.eye(4) > 0].mean(2),
    "indices over space": lambda m, h: h[..., INDEX, :],
    "two indices": lambda m, h: h[:, :, INDEX, INDEX].transpose(1, 2),
    "two indices apart": lambda m, h: h[INDEX % 2, :, INDEX].mean(2),
    "a number and indices": lambda m, h: h[0, :, INDEX].transpose(0, 1).mean(2),
    "mask over batch and space": lambda m, h: h.permute(0, 2, 3, 1)[torch.ones(2, 4).bool()].mean(
        1
    ),
    "written over space": lambda m, h: put(h, (Ellipsis, slice(0, 2)), h[..., 2:]),
    "channels last, written": lambda m, h: put(
        h.permute(0, 2, 3, 1), torch.ones(2, 4, 4).bool(), h.mean((0, 2, 3))
    ).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("looks", [False, True], ids=["without values", "on values"])
@pytest.mark.parametrize("name", IMAGE_PICKS)
def test_picking_space_leaves_channels_free(name: str, looks: bool) -> None:
    assert growth_of(convs_between(IMAGE_PICKS[name], looks=looks), IMAGES) == ""
