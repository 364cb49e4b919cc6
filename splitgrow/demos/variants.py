"""Variants of images that are made when they are asked for, so that many of them take no memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

Change = Callable[[Tensor], Tensor]
"""Images (N, C, H, W) to as many of the same shape, each for itself."""


class Variant(Dataset[tuple[Tensor, Tensor]]):
    """Labelled images, changed as they are read; an index may be a tensor of many."""

    takes_tensors = True

    def __init__(self, images: Tensor, labels: Tensor, change: Change) -> None:
        self._images, self._labels, self._change = images, labels, change

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int | Tensor) -> tuple[Tensor, Tensor]:
        found = self._images[index]
        changed = self._change(found) if found.dim() == 4 else self._change(found[None])[0]
        return changed, self._labels[index]


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class Permuted:
    """Moves pixels: the one at `order[i]` comes to place i, with all of its channels."""

    order: Tensor  # (H * W,), row by row

    def __call__(self, images: Tensor) -> Tensor:
        """The images with their pixels moved."""
        flat = images.flatten(2)  # of the ways to index it, gather is the fastest by far
        return flat.gather(2, self.order.expand(*flat.shape[:2], -1)).view_as(images)


@dataclass(frozen=True)
class Rotated:
    """Turns images counterclockwise about their middle; pixels from outside repeat the edge.

    Quarter turns of square images move pixels; all others are bilinear.
    """

    degrees: float

    def __call__(self, images: Tensor) -> Tensor:
        """The images, turned."""
        height, width = images.shape[2:]
        turns, rest = divmod(self.degrees, 90)
        if rest == 0 and (height == width or turns % 2 == 0):
            return torch.rot90(images, int(turns), (2, 3))
        cosine, sine = (turn(math.radians(self.degrees)) for turn in (math.cos, math.sin))
        # Coordinates run from -1 to 1 along either side, of any length.
        turning = images.new_tensor(
            [[cosine, -sine * height / width, 0], [sine * width / height, cosine, 0]]
        )
        grid = F.affine_grid(turning[None], [1, 1, height, width], align_corners=False)
        return F.grid_sample(
            images,
            grid.expand(len(images), -1, -1, -1),
            padding_mode="border",
            align_corners=False,
        )
