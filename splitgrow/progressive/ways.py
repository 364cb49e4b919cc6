"""The steps from images to features and back: adapters, half and double size, and paths of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

Maker: TypeAlias = Callable[[int, int], nn.Module]
"""Makes a module from the numbers of channels that it reads and gives."""
Stage: TypeAlias = nn.Module | Maker
"""A stage, or a function that makes it when its turn comes."""
Way: TypeAlias = tuple[Callable[[Tensor], Tensor] | tuple[str, str], ...]
"""A path's steps: functions, and modules by the attribute and the key under which they are held."""


def halved(images: Tensor) -> Tensor:
    """Images of half the size: means of two by two pixels."""
    return F.avg_pool2d(images, 2)


def doubled(images: Tensor) -> Tensor:
    """Images of twice the size: each pixel four times."""
    return F.interpolate(images, scale_factor=2.0, mode="nearest")


def pointwise(ins: int, outs: int) -> nn.Module:
    """The usual adapter: a 1x1 convolution."""
    return nn.Conv2d(ins, outs, 1)


class Path(nn.Module):
    """Runs modules where their owner holds them, so that they keep their names in a fade."""

    def __init__(self, owner: nn.Module, steps: Way) -> None:
        super().__init__()
        self._owner, self._steps = [owner], steps  # in a list, so that it does not count as inside

    def forward(self, x: Tensor) -> Tensor:
        """The result of the last step."""
        for step in self._steps:
            if isinstance(step, tuple):
                holder, key = step
                x = getattr(self._owner[0], holder)[key](x)
            else:
                x = step(x)
        return x
