"""Small models whose scores are summed by hand."""

from __future__ import annotations

from typing import Any

import torch
from helpers import randomise
from torch import Tensor, nn

import splitgrow


class Recurrent(nn.Module):
    """An embedding, a layer that reads its own units, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3)
        self.rnn = nn.GRU(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.table(x))[0])


class Tied(nn.Module):
    """An embedding and a head that share their weight, with a layer between them."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.inner = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        return self.head(x + self.inner(x).relu())


class Gated(nn.Module):
    """A gate that is the mean of units, which no weights read."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 3)
        self.gate, self.head = nn.Linear(3, 4), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.table(x)
        return self.head(x) * self.gate(x).sigmoid().mean(-1, keepdim=True)


def small(module: nn.Module) -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(module).double(), torch.randint(7, (3, 5)))
