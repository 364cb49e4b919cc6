"""More models for the laws: attention, embeddings, control flow, a custom layer type.

torch.fx cannot trace some of them, and some hold numbers that must follow the widths of layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow


class FusedAttention(nn.Module):
    """Queries, keys and values by one Linear, taken apart by the numbers that it holds."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = heads, head_dim, heads * head_dim
        self.qkv = nn.Linear(dim, 3 * self.attn_dim)
        self.proj = nn.Linear(self.attn_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, N, self.attn_dim))


class PreNormBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), FusedAttention(dim, 2, 3)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 7), nn.GELU(), nn.Linear(7, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Norms over the stream fix its width; heads and hidden units are free."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.blocks = nn.ModuleList(PreNormBlock(8) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def repeated(x: Tensor, n_rep: int) -> Tensor:
    """Each head several times in a row."""
    batch, heads, tokens, size = x.shape
    if n_rep == 1:
        return x
    x = x[:, :, None, :, :].expand(batch, heads, n_rep, tokens, size)
    return x.reshape(batch, heads * n_rep, tokens, size)


class GroupedQueryAttention(nn.Module):
    """Layers of their own for queries, keys and values, and fewer keys than queries."""

    def __init__(self, dim: int, heads: int, key_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.num_key_heads, self.head_dim = heads, key_heads, head_dim
        self.n_rep, self.scale = heads // key_heads, head_dim**-0.5
        self.query = nn.Linear(dim, heads * head_dim, bias=False)
        self.key = nn.Linear(dim, key_heads * head_dim, bias=False)
        self.value = nn.Linear(dim, key_heads * head_dim)
        self.out = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q = self.query(x).view(shape).transpose(1, 2)
        k = self.key(x).view(shape).transpose(1, 2)
        v = self.value(x).view(shape).transpose(1, 2)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        k, v = repeated(k, self.n_rep), repeated(v, self.n_rep)
        weights = (torch.matmul(q, k.transpose(2, 3)) * self.scale).softmax(dim=-1)
        y = torch.matmul(weights, v).transpose(1, 2).contiguous()
        return self.out(y.reshape(*x.shape[:-1], -1)), weights


class GroupedQueries(nn.Module):
    """Without a norm on the stream, all of it can grow."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.attend = GroupedQueryAttention(6, 4, 2, 3)
        self.gate, self.up, self.down = nn.Linear(6, 7), nn.Linear(6, 7), nn.Linear(7, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).tanh()
        y, _ = self.attend(x)
        x = x + y
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x).tanh()))


class OneKeyAttention(nn.Module):
    """Queries of several heads and one key and value, by one Linear: heads + 2 of one width."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.n_rep = heads, head_dim, heads
        self.qkv = nn.Linear(dim, (heads + 2) * head_dim)
        self.out = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).view(batch, tokens, self.num_heads + 2, self.head_dim)
        q, k, v = qkv[..., :-2, :], qkv[..., [-2], :], qkv[..., [-1], :]
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        y = F.scaled_dot_product_attention(q, repeated(k, self.n_rep), self.repeat(v))
        return self.out(y.transpose(1, 2).reshape(batch, tokens, self.num_heads * self.head_dim))

    def repeat(self, v: Tensor) -> Tensor:
        return v.repeat_interleave(self.n_rep, dim=1)


class SplitAttention(nn.Module):
    """Queries, values and keys in two shares of a Linear, cut by products and quotients."""

    def __init__(self, dim: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, head_dim
        self.n_head, self.split_size = heads, heads * head_dim
        self.qvk = nn.Linear(dim, 3 * heads * head_dim)
        self.mixed = nn.Linear(dim, 3 * heads * head_dim)
        self.out = nn.Linear(2 * heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.mixed(x).split(self.split_size, dim=2)
        one = F.scaled_dot_product_attention(*map(self.heads_of, parts))
        local = self.head_dim * self.num_heads // 2
        shares = self.qvk(x).reshape(*x.shape[:2], 2, -1).split(local, dim=-1)
        shape = (*x.shape[:2], -1, self.head_dim)
        q, v, k = (share.reshape(shape).transpose(1, 2) for share in shares)
        other = F.scaled_dot_product_attention(q, k, v)
        y = torch.cat([one, other], 1).transpose(1, 2)
        return self.out(y.flatten(2))

    def heads_of(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.n_head, x.shape[-1] // self.n_head)
        return x.view(shape).transpose(1, 2)


class FusedHeads(nn.Module):
    """Attentions whose one Linear is cut in other ways than into three."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 6), nn.Linear(6, 4)
        self.one_key, self.split = OneKeyAttention(6, 4, 3), SplitAttention(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).tanh()
        x = x + self.one_key(x)
        return self.head(x + self.split(x))


def _fx_follows_devices() -> bool:
    """Whether torch.fx traces ``torch.arange(n, device=x.device)``; that of torch 2.4 does not."""

    class Asking(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.arange(x.shape[0], device=x.device)

    try:
        torch.fx.symbolic_trace(Asking())
    except TypeError:
        return False
    return True


FX_FOLLOWS_DEVICES = _fx_follows_devices()


class Tokens(nn.Module):
    """Words and their positions, looked up in tables that grow in width."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(11, 6, padding_idx=0), nn.Embedding(7, 6)
        self.bag = nn.EmbeddingBag(11, 4, mode="sum")
        self.fc1, self.fc2 = nn.Linear(6, 5), nn.Linear(9, 3)

    def forward(self, words: Tensor) -> Tensor:
        places = torch.arange(words.shape[1], device=words.device)
        x = self.words(words) + self.places(places)
        x = self.fc1(x).tanh().mean(1)
        return self.fc2(torch.cat([x, self.bag(words)], dim=-1))


class Deciding(nn.Module):
    """Decides by shapes and by values, and splits by a number that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.split_size = 4
        self.norm = nn.BatchNorm1d(3)
        self.both = nn.Linear(3, 2 * self.split_size)
        self.widen, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if x.abs().sum() > 0:
            x = x + 0.5
        x = self.both(x)
        if x.dim() == 2 and x.shape[1] > 1:
            gate, x = x.split(self.split_size, dim=-1)
            x = gate.sigmoid() * x
        x = self.widen(x)
        for _ in range(x.dim()):
            x = x.tanh()
        return self.head(x)


class CausalConv1d(nn.Conv1d):
    """Looks at the past only; made known by `register_layer`."""

    def forward(self, x: Tensor) -> Tensor:
        past = (self.kernel_size[0] - 1) * self.dilation[0]
        return super().forward(F.pad(x, (past, 0)))


splitgrow.register_layer(CausalConv1d, like=nn.Conv1d)


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = CausalConv1d(2, 6, 3), nn.BatchNorm1d(6)
        self.conv2 = CausalConv1d(6, 6, 2, dilation=2, groups=2, bias=False)
        self.conv3 = CausalConv1d(6, 4, 3, padding_mode="replicate")
        self.out = nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        x = x + self.conv2(x).tanh()
        return self.out(F.gelu(self.conv3(x)))


class Decoder(nn.Module):
    """A stream that only RMS norms read over all its channels: it grows, in silence."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 8)
        self.norms = nn.ModuleList([nn.RMSNorm(8, eps=1e-2), nn.RMSNorm(8), nn.RMSNorm(8)])
        self.attention = GroupedQueryAttention(8, 4, 2, 3)
        self.up, self.gate = nn.Linear(8, 10), nn.Linear(8, 10)
        self.down, self.head = nn.Linear(10, 8, bias=False), nn.Linear(8, 5)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        x = x + self.attention(self.norms[0](x))[0]
        y = self.norms[1](x)
        x = x + self.down(F.silu(self.gate(y)) * self.up(y))
        return self.head(self.norms[2](x))
