"""The models whose lives are drawn. Their names of layers say which rule of the oracle they get."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual block with its norm in front, over space or not."""

    def __init__(self, width: int, *, space: bool) -> None:
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(width) if space else nn.BatchNorm1d(width)
        self.first: nn.Module = _layer(width, width, 3) if space else nn.Linear(width, width)
        self.act = nn.ReLU()
        self.last: nn.Module = _layer(width, width, 1) if space else nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.act(self.first(self.norm(x))))
        return x + made


class Net(nn.Module):
    """Equal widths, so that pairs by a wrong position would fit in shape; channels that join."""

    def __init__(self, *, space: bool) -> None:
        super().__init__()
        self.space = space
        self.stem: nn.Module = _layer(2, 4, 3) if space else nn.Linear(2, 4)
        self.norm: nn.Module = nn.BatchNorm2d(4) if space else nn.BatchNorm1d(4)
        self.act = nn.ReLU()
        self.block = Block(4, space=space)
        self.side: nn.Module = _layer(4, 4, 1) if space else nn.Linear(4, 4)
        self.tanh = nn.Tanh()
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(self.act(self.norm(self.stem(x))))
        h = torch.cat([h, self.tanh(self.side(h))], 1)
        made: Tensor = self.head(h.mean((2, 3)) if self.space else h)
        return made


def _layer(ins: int, outs: int, size: int) -> nn.Module:
    return nn.Conv2d(ins, outs, size, padding=size // 2)


def made(seed: int, dtype: torch.dtype = torch.float64, *, space: bool) -> Net:
    """A network with values that no formula could hide behind."""
    torch.manual_seed(seed)
    net = Net(space=space).to(dtype)
    with torch.no_grad():
        for norm in (net.norm, net.block.norm):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.3)
            norm.running_mean.normal_(std=0.3)
            norm.running_var.uniform_(0.5, 1.5)
    return net


def inputs(width: int, seed: int, dtype: torch.dtype, *, space: bool) -> Tensor:
    """A batch for a network of that many input channels; the first channels are those of fewer."""
    shape = (4, 4) if space else ()
    channels = [
        torch.randn(5, *shape, generator=torch.Generator().manual_seed(101 * seed + c)).double()
        for c in range(width)
    ]
    return torch.stack(channels, 1).to(dtype)
