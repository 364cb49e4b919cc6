"""Models with torch's own attention, alone and in torch's transformer layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import randomise
from torch import Tensor, nn

WIDTH, HEADS = 8, 2


class Among(nn.Module):
    """An attention between two Linear layers, with what it is given besides."""

    def __init__(self, attention: nn.MultiheadAttention, **given: Any) -> None:
        super().__init__()
        self.first, self.attention = nn.Linear(5, WIDTH), attention
        self.last, self.given = nn.Linear(WIDTH, 3), given

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h + self.attention(h, h, h, **self.given)[0])


class Across(nn.Module):
    """Queries of one stream, keys of another, values of a third."""

    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        widths = (WIDTH, attention.kdim, attention.vdim)
        self.streams = nn.ModuleList(nn.Linear(5, width) for width in widths)
        self.attention, self.last = attention, nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (stream(x) for stream in self.streams)
        return self.last(self.attention(q, k, v, need_weights=False)[0])


class Both(nn.Module):
    """A whole transformer, from one sequence to another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, WIDTH)
        self.whole = nn.Transformer(WIDTH, HEADS, 1, 1, 6, dropout=0.0, batch_first=True)
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(self.whole(h[:, 1:], h))


def attention(**options: Any) -> nn.MultiheadAttention:
    return nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **options})


def block(**options: Any) -> nn.TransformerEncoderLayer:
    chosen = {"dropout": 0.0, "batch_first": True, **options}
    return nn.TransformerEncoderLayer(WIDTH, HEADS, 6, **chosen)


def causal() -> Tensor:
    return nn.Transformer.generate_square_subsequent_mask(4, dtype=torch.float64)


def hidden() -> Tensor:
    return torch.tensor([[False] * 4, [False, False, True, True]])


def stack(layer: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, WIDTH), layer, nn.Linear(WIDTH, 3))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Among(attention()),
    "without weights": lambda: Among(attention(), need_weights=False),
    "sequence first": lambda: Among(attention(batch_first=False)),
    "no bias": lambda: Among(attention(bias=False), need_weights=False),
    "more keys": lambda: Among(attention(add_bias_kv=True, add_zero_attn=True)),
    "masked": lambda: Among(attention(), attn_mask=causal(), need_weights=False),
    "masked by bools": lambda: Among(attention(), attn_mask=causal() != 0),
    "causal": lambda: Among(attention(), attn_mask=causal(), is_causal=True, need_weights=False),
    "padded": lambda: Among(attention(add_zero_attn=True), key_padding_mask=hidden()),
    "padded and masked": lambda: Among(
        attention(), key_padding_mask=hidden(), attn_mask=causal() != 0, need_weights=False
    ),
    "across": lambda: Across(attention(kdim=6, vdim=7)),
    "across, packed": lambda: Across(attention()),
    "post-norm": lambda: stack(block()),
    "pre-norm": lambda: stack(block(norm_first=True)),
    "encoder": lambda: stack(
        nn.TransformerEncoder(block(norm_first=True), 2, enable_nested_tensor=False)
    ),
    "post-norm encoder": lambda: stack(nn.TransformerEncoder(block(), 2)),
    "transformer": Both,
}

X = torch.randn(2, 4, 5, generator=torch.manual_seed(3), dtype=torch.float64)


def made(name: str) -> Any:
    torch.manual_seed(0)
    return randomise(MODELS[name]().double()).eval()


def attentions(model: nn.Module) -> list[nn.MultiheadAttention]:
    return [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]
