"""The demo's network: a small residual CNN of plain torch.nn layers, with nothing of splitgrow."""

from __future__ import annotations

import math

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norms, added to the input (or to its projection).

    Reference: He et al., Deep Residual Learning for Image Recognition, figure 2 (left).
    """

    def __init__(self, in_width: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_width, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_width != width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_width, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """`(N, in_width, H, W)` to `(N, width, ceil(H / stride), ceil(W / stride))`."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        z: Tensor = self.relu(y + self.shortcut(x))
        return z


class ResidualNet(nn.Module):
    """A stem, residual blocks that halve the image and double the width, and a linear head."""

    def __init__(self, channels: int, classes: int, *, width: int, stages: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        widths = [width * 2**stage for stage in range(stages)]
        self.stages = nn.Sequential(
            *(
                ResidualBlock(before, after, stride=1 if stage == 0 else 2)
                for stage, (before, after) in enumerate(zip([width, *widths], widths, strict=False))
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[-1], classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(N, channels, H, W)` to logits `(N, classes)`."""
        y = self.stages(self.stem(x))
        logits: Tensor = self.head(self.pool(y).flatten(1))
        return logits


def stages_for(size: tuple[int, int]) -> int:
    """How many stages suit images of that size: the last sees maps of about 8x8, or 4x4 of 8x8.

    >>> [stages_for((side, side)) for side in (8, 16, 28, 32, 64, 224)]
    [2, 2, 3, 3, 4, 4]
    """
    return min(4, max(2, math.ceil(math.log2(min(size) / 4))))
