"""Models whose modules hold parameters and buffers along channels, in no layer of their own."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Affine(nn.Module):
    """A scale and a shift for each channel, written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1, width, 1, 1))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift.view(1, -1, 1, 1)


class FrozenNorm(nn.Module):
    """A batch norm that never trains: four buffers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(width) + 0.5)
        self.register_buffer("bias", torch.randn(width))
        self.register_buffer("mean", torch.randn(width))
        self.register_buffer("var", torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.weight * (self.var.abs() + 0.1).rsqrt()).reshape(1, -1, 1, 1)
        shift = self.bias.reshape(1, -1, 1, 1) - self.mean.reshape(1, -1, 1, 1) * scale
        return x * scale + shift


class Affines(nn.Module):
    """Scales, shifts and statistics of a stream, in modules and in the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.affine, self.norm = nn.Conv2d(3, 4, 3), Affine(4), FrozenNorm(4)
        self.gammas = nn.ParameterList([torch.randn(4, 1, 1), torch.randn(4, 1, 1)])
        self.named = nn.ParameterDict({"slope": torch.rand(4)})
        self.inner = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(2))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.prelu(self.norm(self.affine(self.stem(x))), self.named["slope"])
        for gamma, layer in zip(self.gammas, self.inner, strict=True):
            x = x + gamma * layer(x).relu()
        return self.head(x)


class TokenMixer(nn.Module):
    """A vision transformer without norms: a class token, positions and layer scales."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(torch.randn(1, 5, width))
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.fc1, self.fc2 = nn.Linear(width, 8), nn.Linear(8, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.5))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        x = x + self.gamma * self.fc2(torch.tanh(self.fc1(x)))
        return self.head(x.mean(1))


class StateSpace(nn.Module):
    """As Mamba's mixer: a scan with a decay for each channel and state, and a skip."""

    def __init__(self, width: int = 5, states: int = 3) -> None:
        super().__init__()
        self.states = states
        self.reads, self.steps = nn.Linear(4, width), nn.Linear(4, width)
        self.mixes = nn.Linear(width, 2 * states)
        decays = torch.arange(1, states + 1).float().repeat(width, 1)
        self.A_log, self.D = nn.Parameter(torch.log(decays)), nn.Parameter(torch.ones(width))
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        u, dt = torch.tanh(self.reads(x)), torch.sigmoid(self.steps(x))
        b, c = self.mixes(u).split([self.states, self.states], -1)
        decay = torch.exp(dt[..., None] * -torch.exp(self.A_log))
        state, found = torch.zeros_like(decay[:, 0]), []
        for t in range(3):
            state = decay[:, t] * state + (dt * u)[:, t, :, None] * b[:, t, None, :]
            found.append((state * c[:, t, None, :]).sum(-1))
        return self.out(torch.stack(found, 1) + self.D * u)


class Windowed(nn.Module):
    """As Swin's attention: a table of biases and a temperature for each head."""

    def __init__(self, width: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.num_heads, self.head_dim = heads, 3
        self.qkv = nn.Linear(width, 3 * heads * 3)
        self.proj = nn.Linear(heads * 3, width)
        self.temperature = nn.Parameter(torch.rand(heads, 1, 1) + 0.5)
        self.table = nn.Parameter(torch.randn(9, heads))
        offsets = torch.arange(5)
        self.register_buffer("index", offsets[:, None] - offsets[None] + 4)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(5, 5, -1).permute(2, 0, 1)
        scores = (q @ k.transpose(-2, -1)) * self.temperature + bias.unsqueeze(0)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, tokens, -1))


class ByHand(nn.Module):
    """Matrices that forward multiplies by itself, in all the ways that there are."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4)
        self.weight, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
        self.matrix = nn.Parameter(torch.randn(4, 4))
        self.experts, self.router = nn.Parameter(torch.randn(2, 4, 4)), nn.Linear(4, 2)
        self.kernel = nn.Parameter(torch.randn(3, 4, 2))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = x + F.linear(x, self.weight, self.bias)
        x = x + torch.tanh(x @ self.matrix.t())
        gates = self.router(x).softmax(-1)
        x = x + torch.einsum("nti,eio,nte->nto", x, self.experts, gates)
        x = x + self.second(torch.tanh(x))
        return self.head(x).sum(1) + F.conv1d(x.transpose(1, 2), self.kernel).sum((1, 2))[:, None]


class SilentStream(nn.Module):
    """A stream that RMS norms read: new channels start as zeros, also in the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Linear(3, 8), nn.Parameter(torch.randn(5, 8))
        self.norm, self.last = nn.RMSNorm(8), nn.RMSNorm(8)
        self.gamma, self.mix = nn.Parameter(torch.rand(8)), nn.Linear(8, 8)
        self.router = nn.Parameter(torch.randn(2, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.positions
        y = self.norm(x)
        x = x + self.gamma * self.mix(y) * F.linear(y, self.router).sigmoid().sum(-1, keepdim=True)
        return self.head(self.last(x))
