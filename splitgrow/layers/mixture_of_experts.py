"""A mixture of experts made of one module: at first all experts are copies of it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from splitgrow.layers.scripting import Unscriptable


class MixtureOfExperts(Unscriptable, nn.Module):
    """Experts of which a router chooses some for each token; their results are averaged.

    The router's scores become shares by a softmax. The largest shares are chosen and divided by
    their sum. So as long as the experts are alike, the mixture computes what one of them does,
    whatever the router says: a dense layer can become a mixture without a change (sparse upcycling,
    Komatsuzaki et al. 2022, https://arxiv.org/abs/2212.05055; with shares of the chosen ones alone
    as in He et al. 2024, https://arxiv.org/abs/2410.07524, section 3).

    Experts start to differ as tokens train those that were chosen for them. Nothing spreads tokens
    evenly; a loss for that finds the scores at the output of `router`, by a hook.

    Attributes:
        router: Makes the scores, (..., features) to (..., experts), without a bias.
        experts: The experts, each (tokens, features) to (tokens, features of the result).
        top_k: How many experts are chosen for each token.

    Args:
        expert: The module of which each expert is a copy. It works on each token by itself, and its
            first argument is (..., features).
        features: The number of features of a token.
        experts: The number of experts.
        top_k: How many are chosen for each token, at most as many as there are.

    Example:
        >>> import torch, splitgrow
        >>> mlp = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.GELU(), torch.nn.Linear(8, 4))
        >>> mixture = splitgrow.MixtureOfExperts(mlp, features=4, experts=3, top_k=2)
        >>> x = torch.randn(2, 5, 4)
        >>> torch.allclose(mixture(x), mlp(x), atol=1e-6)
        True
    """

    def __init__(self, expert: nn.Module, *, features: int, experts: int, top_k: int) -> None:
        super().__init__()
        check_counts(experts, top_k)
        like = next((p for p in expert.parameters() if p.is_floating_point()), torch.empty(0))
        self.top_k = top_k
        self.router = nn.Linear(features, experts, bias=False, device=like.device, dtype=like.dtype)
        nn.init.normal_(self.router.weight, std=0.02)
        self.experts = nn.ModuleList(copy.deepcopy(expert) for _ in range(experts))
        self.training = expert.training

    def forward(self, x: Tensor) -> Tensor:
        """The averages of the chosen experts' results, (..., features) to (..., features)."""
        tokens = x.reshape(-1, x.shape[-1])
        shares = torch.softmax(self.router(tokens).float(), -1)
        weights, chosen = torch.topk(shares, self.top_k, -1)
        weights = (weights / weights.sum(-1, keepdim=True)).to(x.dtype)
        result: Tensor | None = None
        for number, expert in enumerate(self.experts):
            token, place = torch.where(chosen == number)
            made = expert(tokens[token]) * weights[token, place].unsqueeze(-1)
            if result is None:
                result = made.new_zeros(tokens.shape[0], made.shape[-1])
            result = result.index_add(0, token, made)
        assert result is not None
        return result.reshape(*x.shape[:-1], result.shape[-1])

    def extra_repr(self) -> str:
        """How many experts are chosen."""
        return f"top_k={self.top_k}"


def check_counts(experts: object, top_k: object) -> None:
    """Makes sure that numbers of experts, and of chosen ones, fit.

    Raises:
        TypeError: If one is no int.
        ValueError: If there are too few experts, or too many are chosen.
    """
    for name, value in (("experts", experts), ("top_k", top_k)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be an int, got {value!r}")
    assert isinstance(experts, int)
    assert isinstance(top_k, int)
    if experts < 2:
        raise ValueError(f"experts (={experts}) must be at least 2")
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k (={top_k}) must be from 1 to the number of experts, {experts}")
