"""Plain networks of torch.nn at any width: a VGG, a ResNet, a vision transformer and a GPT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitgrow.demos.backbones import BasicBlock


class Vgg(nn.Module):
    """Convolutions with batch norms, a pooling layer behind each pair, and a linear head.

    Args:
        widths: The widths of the convolutions.
        classes: The number of logits.
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for index, width in enumerate(widths):
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
            layers += [nn.ReLU()] + [nn.MaxPool2d(2)] * (index % 2)
            before = width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes)."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


class ResNet(nn.Module):
    """A stem, stages of basic blocks and a linear head.

    Args:
        widths: The width of each stage; the stem has that of the first.
        blocks: The blocks of each stage.
        classes: The number of logits.
    """

    def __init__(self, widths: Sequence[int], blocks: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(widths[0])
        stages, before = [], widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stride = 2 if stage and not block else 1
                stages.append(BasicBlock(before, width, stride))
                before = width
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) to (N, classes)."""
        y = self.stages(F.relu(self.norm(self.stem(x))))
        logits: Tensor = self.head(y.mean((2, 3)))
        return logits


class Block(nn.Module):
    """Attention and an MLP, each behind a norm.

    Args:
        width: The width of the stream.
        heads: The number of heads.
        hidden: The hidden units of the MLP.
        size: The units of a head.
        causal: Whether a place sees only those before it.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, *, size: int = 16, causal: bool
    ) -> None:
        super().__init__()
        self.heads, self.size, self.causal = heads, size, causal
        inner = heads * self.size
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, inner), nn.Linear(width, inner)
        self.value, self.out = nn.Linear(width, inner), nn.Linear(inner, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(N, places, width) to the same."""
        y = self.before(x)
        n, places, _ = y.shape
        q, k, v = (
            part(y).view(n, places, self.heads, self.size).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(y.transpose(1, 2).reshape(n, places, self.heads * self.size))
        return x + self.down(F.gelu(self.up(self.between(x))))


class Vit(nn.Module):
    """A vision transformer over patches of 4x4.

    Args:
        sizes: The stream's width, the heads, the hidden units of an MLP, the blocks.
        side: The side of the pictures.
        classes: The number of logits.
    """

    def __init__(self, sizes: tuple[int, int, int, int], side: int, classes: int) -> None:
        super().__init__()
        width, heads, hidden, depth = sizes
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.places = nn.Parameter(torch.randn((side // 4) ** 2, width) * 0.02)
        blocks = (Block(width, heads, hidden, causal=False) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, side, side) to (N, classes)."""
        y = self.patches(x).flatten(2).transpose(1, 2) + self.places
        logits: Tensor = self.head(self.norm(self.blocks(y)).mean(1))
        return logits


class Gpt(nn.Module):
    """A language model over bytes whose head has the weight of its embedding.

    Args:
        sizes: The stream's width, the heads, the hidden units of an MLP, the blocks.
        context: The largest number of bytes that it sees.
        size: The units of a head.
    """

    def __init__(self, sizes: tuple[int, int, int, int], context: int, *, size: int = 16) -> None:
        super().__init__()
        width, heads, hidden, depth = sizes
        self.embed = nn.Embedding(256, width)
        self.places = nn.Parameter(torch.zeros(context, width))
        blocks = (Block(width, heads, hidden, size=size, causal=True) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256, bias=False)
        self.head.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.02)
        nn.init.normal_(self.places, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(N, places) bytes to (N, places, 256) scores of the next."""
        y = self.embed(x) + self.places[: x.shape[1]]
        scores: Tensor = self.head(self.norm(self.blocks(y)))
        return scores
