"""Modules of torch that compute much in one op, written out for the trace as the ops it stands for.

The widths of such a module show in these ops alone: which rows of a matrix make the queries, which
channels are heads. The model itself goes on running torch's op, with the tensors of today.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def written_out(modules: Iterable[nn.Module]) -> dict[nn.Module, Callable[..., Any]]:
    """The forwards in ops, of those modules whose own is not to be traced."""
    return {
        module: partial(_attention, module)
        for module in modules
        if isinstance(module, nn.MultiheadAttention)
        and type(module).forward is nn.MultiheadAttention.forward
        and "forward" not in vars(module)
    }


def _attention(  # noqa: PLR0913
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,  # noqa: FBT001, FBT002 - as torch has it
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,  # noqa: FBT001, FBT002
    is_causal: bool = False,  # noqa: FBT001, FBT002
) -> tuple[Tensor, Tensor | None]:
    """As `nn.MultiheadAttention.forward`; N examples of L queries and S keys, H heads."""
    batched = query.dim() == 3
    given = {id(x): _examples_first(module, x, batched=batched) for x in (query, key, value)}
    q, k, v = _projected(module, *(given[id(x)] for x in (query, key, value)))  # each (N, L, E)
    mask = _additive(attn_mask, q)
    padding = _additive(key_padding_mask, q)
    if module.bias_k is not None and module.bias_v is not None:
        k = torch.cat([k, module.bias_k.expand(k.shape[0], 1, -1)], 1)
        v = torch.cat([v, module.bias_v.expand(v.shape[0], 1, -1)], 1)
    if module.add_zero_attn:
        k, v = (torch.cat([x, torch.zeros_like(x[:, :1])], 1) for x in (k, v))
    if mask is not None and mask.dim() == 3:
        mask = mask.view(q.shape[0], module.num_heads, *mask.shape[1:])
    more = (module.bias_k is not None) + module.add_zero_attn
    mask = None if mask is None else F.pad(mask, (0, more))
    if padding is not None:
        padding = F.pad(padding if batched else padding[None], (0, more))[:, None, None]
        mask = padding if mask is None else mask + padding
    q, k, v = (_heads(module, x) for x in (q, k, v))  # each (N, H, L, E / H)
    dropout = module.dropout if module.training else 0.0
    weights = None
    if need_weights:
        scores = (q * _head_width(module) ** -0.5) @ k.transpose(-2, -1)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        out = F.dropout(weights, dropout) @ v
        weights = weights.mean(1) if average_attn_weights else weights
        weights = weights if batched else weights[0]
    else:
        causal = is_causal and padding is None
        out = F.scaled_dot_product_attention(q, k, v, None if causal else mask, dropout, causal)
    joined = out.transpose(1, 2).reshape(out.shape[0], out.shape[2], module.embed_dim)
    made = module.out_proj(joined)
    if not batched:
        return made[0], weights
    return made if module.batch_first else made.transpose(0, 1), weights


def _examples_first(module: nn.MultiheadAttention, x: Tensor, *, batched: bool) -> Tensor:
    """(N, L, E), from that, (L, N, E) or (L, E)."""
    if not batched:
        return x[None]
    return x if module.batch_first else x.transpose(0, 1)


def _projected(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all heads, side by side."""
    query = query.reshape(*query.shape[:2], module.embed_dim)
    weight, bias = module.in_proj_weight, module.in_proj_bias
    if weight is not None:
        q, k, v = (
            F.linear(x, weight, bias).chunk(3, -1)[n] for n, x in enumerate((query, key, value))
        )
        return q, k, v
    key = key.reshape(*key.shape[:2], module.kdim)
    value = value.reshape(*value.shape[:2], module.vdim)
    weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    q, k, v = map(F.linear, (query, key, value), weights, biases)
    return q, k, v


def _heads(module: nn.MultiheadAttention, x: Tensor) -> Tensor:
    """(N, H, L, E / H) from (N, L, E)."""
    shape = (*x.shape[:2], module.num_heads, _head_width(module))
    return x.reshape(shape).transpose(1, 2)


def _head_width(module: nn.MultiheadAttention) -> int:
    """The width of a head, which stays: a plain number, whoever tracks the module's."""
    return int.__int__(module.embed_dim) // int.__int__(module.num_heads)


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask that is added to scores; one of bools is true where nothing is to be looked at."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
