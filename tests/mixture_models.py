"""Networks with mixtures of experts, written in the ways in which people write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import randomise
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow

FEATURES, EXPERTS, CHOSEN = 6, 4, 2
X = torch.randn(3, 5, FEATURES, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(FEATURES, 9), nn.Linear(9, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


class Mixture(nn.Module):
    """Shares of all scores, the chosen ones divided by their sum; a list of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts, self.top_k = EXPERTS, CHOSEN
        self.gate = nn.Linear(FEATURES, EXPERTS, bias=False)
        self.experts: Any = self.made()

    def made(self) -> nn.Module:
        return nn.ModuleList(Expert() for _ in range(EXPERTS))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = self.gate(x).softmax(-1).topk(self.top_k, dim=-1)
        return weights / weights.sum(-1, keepdim=True), index

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, x.shape[-1])
        return self.mixed(tokens, *self.route(tokens)).view(x.shape)

    def mixed(self, tokens: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        result = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            token, place = torch.where(index == number)
            result = result.index_add(0, token, expert(tokens[token]) * weights[token, place, None])
        return result


class Numbered(Mixture):
    """Asks the list by numbers that it counts itself."""

    def mixed(self, tokens: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        result = torch.zeros_like(tokens)
        for number in range(self.num_experts):
            share = (weights * (index == number)).sum(-1, keepdim=True)
            result = result + share * self.experts[number](tokens)
        return result


class Named(Mixture):
    """Experts in a dict."""

    def made(self) -> nn.Module:
        return nn.ModuleDict({f"expert_{n}": Expert() for n in range(EXPERTS)})

    def mixed(self, tokens: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        result = torch.zeros_like(tokens)
        for number, (_, expert) in enumerate(self.experts.items()):
            share = (weights * (index == number)).sum(-1, keepdim=True)
            result = result + share * expert(tokens)
        return result


class Everything(Mixture):
    """Runs all experts on all tokens, and weighs them with the shares as they are."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = torch.topk(F.softmax(self.gate(x), -1), k=self.top_k)
        return weights, index

    def mixed(self, tokens: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        shares = tokens.new_zeros(len(tokens), self.num_experts).scatter(-1, index, weights)
        made = torch.stack([expert(tokens) for expert in self.experts], -1)
        return (made * shares.unsqueeze(-2)).sum(-1)


class Stack(nn.Module):
    """Experts as entries of two tensors, called with the chosen ones, as in transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = EXPERTS
        self.up = nn.Parameter(torch.randn(EXPERTS, 8, FEATURES))
        self.down = nn.Parameter(torch.randn(EXPERTS, FEATURES, 8))

    def forward(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        torch._assert_async((index < self.num_experts).all())
        rows = index.reshape(-1)
        given = x.repeat_interleave(index.shape[-1], 0).unsqueeze(-1)
        made = (self.down[rows] @ F.gelu(self.up[rows] @ given)).squeeze(-1)
        return (made.view(*index.shape, -1) * weights.unsqueeze(-1)).sum(1)


class Stacked(Mixture):
    def made(self) -> nn.Module:
        return Stack()

    def mixed(self, tokens: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        return self.experts(tokens, index, weights=weights)


class Router(nn.Module):
    """Scores by a matrix of its own, chosen with a bias, group by group, as in DeepSeek-V3."""

    def __init__(self) -> None:
        super().__init__()
        self.number, self.top, self.groups, self.top_groups = EXPERTS, CHOSEN, 2, 1
        self.weight = nn.Parameter(torch.randn(EXPERTS, FEATURES))
        self.register_buffer("bias", torch.randn(EXPERTS))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.linear(x, self.weight).sigmoid()
        biased = scores + self.bias
        grouped = biased.view(-1, self.groups, self.number // self.groups)
        best = grouped.max(-1).values.topk(self.top_groups, dim=-1).indices
        kept = torch.zeros_like(grouped[..., 0]).scatter(-1, best, 1.0).unsqueeze(-1)
        biased = grouped.masked_fill(kept == 0, -torch.inf).flatten(1)
        index = biased.topk(self.top, dim=-1).indices
        weights = scores.gather(-1, index)
        return weights / weights.sum(-1, keepdim=True), index


class Grouped(Stacked):
    def __init__(self) -> None:
        super().__init__()
        self.gate: Any = Router()

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gate(x)


class Scaled(Mixture):
    """Scores that are no shares, times a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = 1.5

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = self.gate(x).sigmoid().topk(self.top_k, dim=-1)
        return weights * self.factor, index


class Held(Mixture):
    """Scores by a matrix that the mixture itself holds, the other way round."""

    def __init__(self) -> None:
        super().__init__()
        del self.gate
        self.scores = nn.Parameter(torch.randn(FEATURES, EXPERTS))

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = (x @ self.scores).softmax(-1).topk(self.top_k, dim=-1)
        return weights / weights.sum(-1, keepdim=True), index


MIXTURES: dict[str, Callable[[], nn.Module]] = {
    each.__name__: each
    for each in (Mixture, Numbered, Named, Everything, Stacked, Grouped, Scaled, Held)
}
"""The mixtures whose experts can grow."""


class Written(Mixture):
    """A number of chosen experts that is written into the code."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = self.gate(x).softmax(-1).topk(2, dim=-1)
        self.top_k = 3
        return weights / weights.sum(-1, keepdim=True), index


class Unshared(Mixture):
    """Scores that are neither shares nor scaled."""

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        weights, index = self.gate(x).sigmoid().topk(self.top_k, dim=-1)
        return weights, index


class Sharing(Stacked):
    """Experts with a parameter that all of them share."""

    def __init__(self) -> None:
        super().__init__()
        self.experts.norm = nn.Parameter(torch.ones(FEATURES))

    def mixed(self, tokens: Tensor, weights: Tensor, index: Tensor) -> Tensor:
        return self.experts(tokens * self.experts.norm, index, weights)


class Block(nn.Module):
    def __init__(self, mixture: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norm, self.moe = nn.LayerNorm(FEATURES), mixture()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.moe(self.norm(x))


def plain(name: str) -> Any:
    torch.manual_seed(0)
    kind: Any = (
        MIXTURES.get(name) or {"Written": Written, "Unshared": Unshared, "Sharing": Sharing}[name]
    )
    layers = (nn.Linear(FEATURES, FEATURES), Block(kind), Block(kind), nn.Linear(FEATURES, 2))
    return randomise(nn.Sequential(*layers)).double().eval()


def growable(name: str) -> Any:
    return splitgrow.growable(plain(name), X)
