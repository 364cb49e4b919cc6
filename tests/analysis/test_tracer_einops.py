"""Forwards with einops grow: its functions follow widths as torch's own do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_equal, outputs_of, randomise
from torch import Tensor, nn

import splitgrow

einops = pytest.importorskip("einops")
einops_layers = pytest.importorskip("einops.layers.torch")

X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Mixes = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """Something between a convolution of eight channels and a layer that reads them."""

    def __init__(self, mixes: Mixes, reads: int) -> None:
        super().__init__()
        self.conv, self.mixes, self.read = nn.Conv2d(3, 8, 1), mixes, nn.Linear(reads, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.mixes(self.conv(x)))


def between(mixes: Mixes, reads: int = 8) -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(Between(mixes, reads).double().eval()), X)


def tokens(h: Tensor) -> Tensor:
    return einops.rearrange(h, "b c h w -> b (h w) c")


def tokens_with_the_width_said(h: Tensor) -> Tensor:
    return einops.rearrange(h, "b c h w -> b (h w) c", c=h.shape[1])


def heads_by_number(h: Tensor) -> Tensor:
    heads = einops.rearrange(h, "b (n d) h w -> b n (h w) d", n=2)
    return einops.rearrange(heads, "b n t d -> b t (n d)")


def heads_by_width(h: Tensor) -> Tensor:
    heads = einops.rearrange(h, "b (n d) h w -> b n (h w) d", d=4)
    return einops.rearrange(heads, "b n t d -> b t (n d)")


def queries_and_keys(h: Tensor) -> Tensor:
    q, k = einops.rearrange(h, "b (k n d) h w -> k b n (h w) d", k=2, n=2)
    return einops.rearrange(q * k.sigmoid(), "b n t d -> b t (n d)")


def pooled(h: Tensor) -> Tensor:
    return einops.reduce(h, "b c h w -> b c", "mean")


def repeated(h: Tensor) -> Tensor:
    return tokens(einops.repeat(h, "b c h w -> b c (h 2) w"))


def patches(h: Tensor) -> Tensor:
    return einops.rearrange(h, "b c (h p) (w q) -> b (h w) (p q c)", p=2, q=2)


def patches_with_channels_first(h: Tensor) -> Tensor:
    return einops.rearrange(h, "b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2)


def multiplied(h: Tensor) -> Tensor:
    return tokens(einops.einsum(h, h, "b c h w, b c h w -> b c h w"))


def packed(h: Tensor) -> Tensor:
    rows, shapes = einops.pack([h, h[:, :, :1]], "b c * w")
    first, _ = einops.unpack(rows, shapes, "b c * w")
    return tokens(first)


FUNCTIONS: dict[Mixes, tuple[int, int]] = {  # how many numbers are read; units a step
    tokens: (8, 1),
    tokens_with_the_width_said: (8, 1),
    heads_by_number: (8, 2),
    heads_by_width: (8, 4),
    queries_and_keys: (4, 4),
    pooled: (8, 1),
    repeated: (8, 1),
    patches: (32, 1),
    patches_with_channels_first: (32, 1),
    multiplied: (8, 1),
    packed: (8, 1),
    einops_layers.Rearrange("b c h w -> b (h w) c"): (8, 1),
    einops_layers.Reduce("b c (h 2) w -> b (h w) c", "max"): (8, 1),
}


@pytest.mark.parametrize("mixes", FUNCTIONS, ids=lambda f: getattr(f, "__name__", type(f).__name__))
def test_a_function_of_einops_follows_the_width(mixes: Mixes) -> None:
    reads, step = FUNCTIONS[mixes]
    model = between(mixes, reads)
    before = outputs_of(model, X)
    for _ in range(2):
        edit = model.expand_layer("conv", step)
        assert "read" in edit.layers
        assert_equal(outputs_of(model, X), before)
    assert_equal(outputs_of(splitgrow.merge(model), X), before)


# --- code that keeps numbers as keys --------------------------------------------------------------


@functools.lru_cache
def counted(width: int) -> Tensor:
    return torch.arange(width, dtype=torch.float64) * 0 + 1


def by_a_cache(h: Tensor) -> Tensor:
    return tokens(h * counted(h.size(1))[:, None, None])


def by_a_table(h: Tensor) -> Tensor:
    return tokens(h * {8: 1.0}.get(h.size(1), 2.0))


def by_a_set_of_other_sizes(h: Tensor) -> Tensor:
    return tokens(h * 2 if h.size(2) in {4} else h)


@pytest.mark.parametrize(
    ("mixes", "grows"),
    [(by_a_cache, False), (by_a_table, False), (by_a_set_of_other_sizes, True)],
)
def test_code_that_cannot_do_without_a_hash_is_given_one(mixes: Mixes, grows: bool) -> None:
    model = between(mixes)
    assert (not model.layers[0].reason) == grows
    if grows:
        before = outputs_of(model, X)
        model.expand_layer("conv", 2)
        assert_equal(outputs_of(model, X), before)
