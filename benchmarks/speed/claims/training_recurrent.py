"""A grown recurrent network trains about as fast as a plain one of the same widths.

Its blocks run as one layer, which is put together for each step: that costs one pass over the
weights, and the sequence many.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.speed.networks import Network
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import against_plain


class _Tagger(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], width: int, layers: int, *, both: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(64, width)
        self.rnn = kind(width, width, layers, bidirectional=both)
        self.head = nn.Linear(width * (1 + both), 64)

    def forward(self, x: Tensor) -> Tensor:
        tagged: Tensor = self.head(self.rnn(torch.relu(self.stem(x)))[0])
        return tagged


def _network(
    kind: type[nn.RNNBase], width: int, layers: int, shape: tuple[int, int], *, both: bool = False
) -> Network:
    def make(small: bool) -> nn.Module:  # noqa: FBT001
        return _Tagger(kind, width // 4 if small else width, layers, both=both)

    ways = ", both directions" if both else ""
    name = f"{kind.__name__} of {width}, layers: {layers}{ways}, {shape[0]} steps of {shape[1]}"
    return Network(name, make, (*shape, 64), (8, 4, 64))


_NETWORKS = (
    _network(nn.LSTM, 64, 1, (20, 16)),
    _network(nn.LSTM, 256, 2, (20, 16)),
    _network(nn.GRU, 256, 1, (20, 16), both=True),
)


def run(settings: Settings, *, freeze: bool) -> Iterator[Measurement]:
    """Each network, every layer grown by a quarter."""
    for one in _NETWORKS[:1] if settings.quick else _NETWORKS:
        yield against_plain(one, settings, 0.25, freeze=freeze)


def _claim(name: str, says: str, *, freeze: bool) -> Claim:
    says = (
        f"Training step of a recurrent network, {says}, every layer 25.0% wider, over that of a "
        f"plain network of the same widths"
    )
    return Claim(name, says, partial(run, freeze=freeze))


CLAIMS = (
    _claim("recurrent-frozen", "the past frozen", freeze=True),
    _claim("recurrent-free", "nothing frozen", freeze=False),
)
