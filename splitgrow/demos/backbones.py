"""Plain networks of torch.nn to learn tasks with, by name; nothing of splitgrow is in them.

Each has a linear layer ``head`` at its end. They are made for small pictures: the residual network
and VGG as they are commonly used for 32x32 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


class Features(nn.Module):
    """Layers that turn a picture into features, and a linear head that reads them.

    Args:
        layers: They return `(N, width)`.
        width: The number of features.
        classes: The number of logits.
    """

    def __init__(self, layers: list[nn.Module], width: int, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `(N, channels, H, W)` to logits `(N, classes)`."""
        logits: Tensor = self.head(self.features(x))
        return logits


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norms, added to the input or to its projection.

    Reference: He et al., Deep Residual Learning for Image Recognition, section 4.2.
    """

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            projection = nn.Conv2d(before, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """`(N, before, H, W)` to `(N, width, ceil(H / stride), ceil(W / stride))`."""
        y = self.relu(self.norm1(self.conv1(x)))
        z: Tensor = self.relu(self.norm2(self.conv2(y)) + self.shortcut(x))
        return z


BackboneSize = tuple[int, int]


def _convolution(before: int, width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]


def cnn(channels: int, classes: int, size: BackboneSize, width: float = 1.0) -> nn.Module:
    """Three convolutions of 32, 64 and 128 units with batch norms, pooled in between."""
    widths = [max(1, round(units * width)) for units in (32, 64, 128)]
    layers: list[nn.Module] = []
    halvings = min(2, int(math.log2(min(size))))
    for index, units in enumerate(widths):
        layers += _convolution(channels if index == 0 else widths[index - 1], units)
        if index < halvings:
            layers.append(nn.MaxPool2d(2))
    layers += [nn.AdaptiveMaxPool2d(2 if min(size) >= 16 else 1), nn.Flatten()]
    return Features(layers, widths[-1] * (4 if min(size) >= 16 else 1), classes)


def mlp(channels: int, classes: int, size: BackboneSize, width: float = 1.0) -> nn.Module:
    """Two hidden layers of 256 units."""
    units = max(1, round(256 * width))
    layers = [
        nn.Flatten(),
        nn.Linear(channels * size[0] * size[1], units),
        nn.ReLU(),
        nn.Linear(units, units),
        nn.ReLU(),
    ]
    return Features(layers, units, classes)


def resnet18(channels: int, classes: int, size: BackboneSize, width: float = 1.0) -> nn.Module:  # noqa: ARG001
    """ResNet-18 with a 3x3 stem and no pooling before its stages."""
    widths = [max(1, round(units * width)) for units in (64, 128, 256, 512)]
    layers = _convolution(channels, widths[0])
    before = widths[0]
    for stage, units in enumerate(widths):
        layers.append(BasicBlock(before, units, 1 if stage == 0 else 2))
        layers.append(BasicBlock(units, units, 1))
        before = units
    return Features([*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()], before, classes)


def vgg16_bn(channels: int, classes: int, size: BackboneSize, width: float = 1.0) -> nn.Module:
    """The thirteen convolutions of VGG-16 with batch norms, and two linear layers of 4096 units.

    Reference: Hung et al., Compacting, Picking and Growing for Unforgetting Continual Learning,
    section 4.1, whose network this is.
    """
    stages = ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3)
    layers: list[nn.Module] = []
    before, side = channels, min(size)
    for stage in stages:
        for units in stage:
            after = max(1, round(units * width))
            layers += _convolution(before, after)
            before = after
        if side >= 2:
            layers.append(nn.MaxPool2d(2))
            side //= 2
    units = max(1, round(4096 * width))
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, units), nn.ReLU()]
    layers += [nn.Linear(units, units), nn.ReLU()]
    return Features(layers, units, classes)


BACKBONES: Mapping[str, Callable[..., Any]] = {
    "cnn": cnn,
    "mlp": mlp,
    "resnet18": resnet18,
    "vgg16_bn": vgg16_bn,
}
"""Networks by name: each takes channels, classes, the size of a picture and a factor for widths."""
