"""The networks that both libraries grow: an MLP, a VGG and a ResNet as gromo's containers have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.learning.tasks import Data, glyphs, photos


class Mlp(nn.Sequential):
    """Hidden layers with GELU between flattened pictures and logits."""

    def __init__(self, hidden: Sequence[int], inputs: int, classes: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.GELU()]
            inputs = width
        super().__init__(*layers, nn.Linear(inputs, classes))


class PairedVgg(nn.Sequential):
    """Stages of two convolutions; the widths between the two of a stage can differ.

    Args:
        hidden: The width of each stage's first convolution.
        outs: The width of each stage's second one.
        classes: The number of logits.
    """

    def __init__(self, hidden: Sequence[int], outs: Sequence[int], classes: int) -> None:
        layers: list[nn.Module] = []
        before = 3
        for pair in zip(hidden, outs, strict=True):
            for width in pair:
                conv = nn.Conv2d(before, width, 3, padding=1)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            layers.append(nn.MaxPool2d(2))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class PreactivationBlock(nn.Module):
    """Norm, ReLU and convolution, twice, beside the identity or a convolution of 1x1."""

    def __init__(self, ins: int, hidden: int, outs: int, stride: int) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(ins), nn.ReLU())
        self.first = nn.Conv2d(ins, hidden, 3, stride, 1, bias=False)
        self.between = nn.Sequential(nn.BatchNorm2d(hidden), nn.ReLU())
        self.second = nn.Conv2d(hidden, outs, 3, padding=1, bias=False)
        self.beside: nn.Module = nn.Identity()
        if ins != outs:
            narrow = nn.Conv2d(ins, outs, 1, stride, bias=False)
            self.beside = nn.Sequential(nn.BatchNorm2d(ins), nn.ReLU(), narrow)

    def forward(self, x: Tensor) -> Tensor:
        """(N, ins, H, W) to (N, outs, H / stride, W / stride)."""
        y = self.second(self.between(self.first(self.before(x))))
        total: Tensor = y + self.beside(x)
        return total


class PreactivationResNet(nn.Sequential):
    """A convolution, blocks of given hidden widths, and a linear head.

    Args:
        hidden: The hidden width of each block; there are as many blocks in each stage.
        widths: The width of each stage.
        classes: The number of logits.
    """

    def __init__(self, hidden: Sequence[int], widths: Sequence[int], classes: int) -> None:
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 3, padding=1, bias=False)]
        before, blocks = widths[0], len(hidden) // len(widths)
        for number, inner in enumerate(hidden):
            stage, block = divmod(number, blocks)
            stride = 2 if stage and not block else 1
            layers.append(PreactivationBlock(before, inner, widths[stage], stride))
            before = widths[stage]
        layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers, nn.Linear(before, classes))


@dataclass(frozen=True)
class Ground:
    """A network to grow, and the training.

    Attributes:
        name: Its name.
        says: The network and the data, in words.
        make: Makes the plain network with given hidden widths.
        start: The hidden widths at the start.
        end: Those at the end.
        data: Reads the data from a folder.
        budget: The multiply-adds of training, in billions.
        batches: The sizes of batches that are tried.
        rates: The rates that are tried.
    """

    name: str
    says: str
    make: Callable[[Sequence[int]], nn.Module]
    start: tuple[int, ...]
    end: tuple[int, ...]
    data: Callable[[Path], Data]
    budget: float
    batches: tuple[int, int, int]
    rates: tuple[float, float, float]

    def stages(self, count: int) -> list[tuple[int, ...]]:
        """The hidden widths after each growth: even ones, in geometric steps."""
        return [
            tuple(
                min(b, 2 * round(a * (b / a) ** (number / count) / 2))
                for a, b in zip(self.start, self.end, strict=True)
            )
            for number in range(1, count + 1)
        ]


@cache
def _halved(read: Callable[[Path], Data], folder: Path) -> Data:
    data = read(folder)
    train, validation, test = (
        (F.avg_pool2d(x, 2), y) for x, y in (data.train, data.validation, data.test)
    )
    return Data(train, validation, test)


@cache
def _grey(folder: Path) -> Data:
    data = glyphs(folder)
    train, validation, test = ((x[:, :1], y) for x, y in (data.train, data.validation, data.test))
    return Data(train, validation, test)


GROUNDS = {
    ground.name: ground
    for ground in (
        Ground(
            "mlp",
            "an MLP of two hidden layers (256, from 64) with GELU on Glyph-100",
            lambda hidden: Mlp(hidden, 32 * 32, 100),
            (64, 64),
            (256, 256),
            _grey,
            50.0,
            (32, 64, 128),
            (1e-3, 2e-3, 4e-3),
        ),
        Ground(
            "vgg",
            "a VGG of three stages (24-24, 48-48, 96-96; the first convolution of each from half "
            "of it, since gromo's container grows no other) on Glyph-100, halved to 16x16",
            lambda hidden: PairedVgg(hidden, (24, 48, 96), 100),
            (12, 24, 48),
            (24, 48, 96),
            lambda folder: _halved(glyphs, folder),
            200.0,
            (16, 32, 64),
            (1e-3, 3e-3, 1e-2),
        ),
        Ground(
            "resnet",
            "a ResNet of preactivation blocks (stream 16-32-64, 2 blocks a stage, hidden widths "
            "from half of the stream's to as many) on CIFAR-10, halved to 16x16",
            lambda hidden: PreactivationResNet(hidden, (16, 32, 64), 10),
            (8, 8, 16, 16, 32, 32),
            (16, 16, 32, 32, 64, 64),
            lambda folder: _halved(photos, folder),
            200.0,
            (16, 32, 64),
            (1e-3, 3e-3, 1e-2),
        ),
    )
}
