"""Modules of torch that compute much in one op, written out for the trace as the ops it stands for.

The widths of such a module show in these ops alone: which rows of a matrix make the queries, which
channels are heads. The model itself goes on running torch's op, with the tensors of today.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from splitgrow.layers.attention import AttentionCall, as_given, attended, examples_first


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
    """As `nn.MultiheadAttention.forward`."""
    batched = query.dim() == 3
    call = AttentionCall(
        batched, key_padding_mask, attn_mask, need_weights, average_attn_weights, is_causal
    )
    given = {id(x): examples_first(module, x, batched=batched) for x in (query, key, value)}
    q, k, v = _projected(module, *(given[id(x)] for x in (query, key, value)))
    # The width of a head stays: plain numbers, whoever tracks those of the module.
    head_width = int.__int__(module.embed_dim) // int.__int__(module.num_heads)
    heads, weights = attended(module, call, q, k, v, head_width)
    out = module.out_proj(heads.reshape(*heads.shape[:2], module.embed_dim))
    return as_given(module, out, batched=batched), weights


def _projected(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of all heads, side by side, of inputs (N, L, E)."""
    query = query.reshape(*query.shape[:2], module.embed_dim)
    key = key.reshape(*key.shape[:2], module.kdim)
    value = value.reshape(*value.shape[:2], module.vdim)
    weight, bias = module.in_proj_weight, module.in_proj_bias
    if weight is not None:
        q, k, v = (
            F.linear(x, weight, bias).chunk(3, -1)[n] for n, x in enumerate((query, key, value))
        )
        return q, k, v
    weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    q, k, v = map(F.linear, (query, key, value), weights, biases)
    return q, k, v
