"""Language models whose heads have the weights of their embeddings."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Tied(nn.Module):
    """A language model whose head has the weight of its embedding."""

    def __init__(self, norm: Any = nn.LayerNorm, *, post: bool = False, bias: bool = False) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(11, 6), nn.Embedding(9, 6)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.norm, self.last, self.change = norm(6), norm(6), nn.Linear(6, 6)
        self.head, self.post = nn.Linear(6, 11, bias=bias), post
        self.tie()

    def tie(self) -> None:
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.places(torch.arange(x.shape[1], device=x.device))
        if self.post:
            h = self.norm(h + self.down(F.gelu(self.up(h))))
            return self.head(self.last(F.gelu(self.change(h))))
        return self.head(self.last(h + self.down(F.gelu(self.up(self.norm(h))))))
