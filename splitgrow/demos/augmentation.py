"""Training images that are changed anew whenever they are seen: mirrored, and shifted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

_PARTS = "eighth"
_SHARE = 8  # of the shorter side: images move by at most one of so many parts


def augmented(kinds: str) -> str:
    """The words for some kinds, as `flips,crops`."""
    words = {
        "flips": "half of them mirrored",
        "crops": f"each moved by up to an {_PARTS} of its side",
    }
    told = " and ".join(words[kind] for kind in kinds.split(","))
    return f"Training images are changed anew whenever they are seen: {told}"


@dataclass(frozen=True)
class Augmentation:
    """Changes images at random.

    Attributes:
        flips: Whether half of the images are mirrored, left to right.
        most: The pixels by which an image moves at most, along either side.
        generator: Draws; None for torch's own.

    Example:
        >>> import torch
        >>> shift = Augmentation(flips=False, most=1)
        >>> shift(torch.ones(2, 3, 8, 8)).shape
        torch.Size([2, 3, 8, 8])
    """

    flips: bool
    most: int
    generator: torch.Generator | None = None

    @classmethod
    def of(
        cls, kinds: str, size: tuple[int, int], generator: torch.Generator | None = None
    ) -> Augmentation | None:
        """The augmentation of some kinds, for images of a size; None for no kind.

        Args:
            kinds: As `flips,crops`; empty for none.
            size: Height and width of the images.
            generator: Draws; None for torch's own.
        """
        most = max(1, min(size) // _SHARE) if "crops" in kinds else 0
        return cls("flips" in kinds, most, generator) if kinds else None

    def __call__(self, images: Tensor) -> Tensor:
        """The images `(N, C, H, W)`, changed.

        What comes in at an edge is 0, the mean of the training images.
        """
        if self.flips:
            mirrored = torch.rand(len(images), generator=self.generator) < 0.5
            images = torch.where(
                mirrored[:, None, None, None].to(images.device), images.flip(3), images
            )
        return self._moved(images) if self.most else images

    def _moved(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        padded = F.pad(images, (self.most,) * 4)
        down, right = torch.randint(2 * self.most + 1, (2, count, 1), generator=self.generator)
        rows = (down + torch.arange(height))[:, :, None].to(images.device)
        columns = (right + torch.arange(width))[:, None, :].to(images.device)
        which = torch.arange(count)[:, None, None].to(images.device)
        return padded[which, :, rows, columns].permute(0, 3, 1, 2).contiguous()


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Labelled images that are changed anew at each reading; an index may be a tensor of many.

    Args:
        data: The images with their labels.
        change: The augmentation.
    """

    takes_tensors = True

    def __init__(self, data: Any, change: Augmentation) -> None:
        self._data, self._change = data, change

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        images, labels = self._data[index]
        many = images.dim() == 4
        changed = self._change(images if many else images[None])
        return changed if many else changed[0], labels
