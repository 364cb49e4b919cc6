"""Attention as torch's own layer computes it, in ops, and as a module of stock Linear layers.

In `nn.MultiheadAttention` the heads are by definition as wide together as the stream. Of Linear
layers for queries, keys, values and output they have a width of their own, and so can grow alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitgrow.errors import UnsupportedModelError
from splitgrow.utils.model_lock import ORIGINAL_CLASS
from splitgrow.utils.module_slots import holders_in, put_in_place_
from splitgrow.utils.rollback import Undo, temporarily


@dataclass(frozen=True)
class _Call:
    """The arguments of one call of an attention, besides the tensors that it attends to.

    Attributes:
        batched: Whether these have a dimension of examples.
        padding: True, or minus infinity, at keys that are padding: (N, S), or (S) unbatched.
        mask: True, or what is added to the scores: (L, S), or (N * H, L, S).
        weights: Whether the weights are returned.
        averaged: Whether they are averaged over the heads.
        causal: Whether the mask is the causal one.
    """

    batched: bool
    padding: Tensor | None
    mask: Tensor | None
    weights: bool
    averaged: bool
    causal: bool


class PlainAttention(nn.Module):
    """`nn.MultiheadAttention` of stock Linear layers: the heads have a width of their own.

    It is called as that, and computes the same. Made by `plain_attention`.

    Attributes:
        q_proj: Makes the queries of all heads.
        k_proj: Makes their keys.
        v_proj: Makes their values.
        out_proj: Reads all heads.
        num_heads: The number of heads.
        head_dim: The width of each.

    Args:
        source: The attention whose values it takes over.
    """

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        self.num_heads, self.head_dim = source.num_heads, source.head_dim
        self.dropout, self.batch_first = source.dropout, source.batch_first
        self.add_zero_attn = source.add_zero_attn
        # Torch's transformer layers ask for these before they take a fused path of their own.
        self.in_proj_bias, self._qkv_same_embed_dim = None, False
        packed = source.in_proj_weight
        apart = (source.q_proj_weight, source.k_proj_weight, source.v_proj_weight)
        weights: Any = apart if packed is None else packed.chunk(3)
        bias = source.in_proj_bias
        biases: Any = (None,) * 3 if bias is None else bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = nn.Linear(1, 1, bias=False, device="meta")
        self.out_proj.out_features, self.out_proj.in_features = source.out_proj.weight.shape
        self.out_proj.weight, self.out_proj.bias = source.out_proj.weight, source.out_proj.bias
        self.bias_k: nn.Parameter | None = source.bias_k  # type: ignore[assignment]
        self.bias_v: nn.Parameter | None = source.bias_v  # type: ignore[assignment]
        self.train(source.training)

    def forward(  # noqa: PLR0913
        self,
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
        call = _Call(
            batched, key_padding_mask, attn_mask, need_weights, average_attn_weights, is_causal
        )
        given = {id(x): _examples_first(self, x, batched=batched) for x in (query, key, value)}
        q, k, v = self.projected(*(given[id(x)] for x in (query, key, value)))
        heads, weights = _attended(self, call, q, k, v)
        return _as_given(self, self.joined(heads), batched=batched), weights

    def projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads, side by side, of inputs (N, L, E)."""
        return self.q_proj(query), self.k_proj(key), self.v_proj(value)

    def joined(self, heads: Tensor) -> Tensor:
        """The output (N, L, E) of heads (N, L, H, E / H)."""
        made: Tensor = self.out_proj(heads.flatten(2))
        return made


def _attended(
    module: Any, call: _Call, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor | None]:
    """What the heads make of queries, keys and values, side by side; and the weights, or None.

    Args:
        module: The attention.
        call: The other arguments of the call.
        q: Queries of all heads, (N, L, H * E) for N examples, L queries, H heads of width E.
        k: Keys, (N, S, H * E).
        v: Values, (N, S, H * E).
    """
    padding, mask = _additive(call.padding, q), _additive(call.mask, q)
    if module.bias_k is not None:
        k = torch.cat([k, module.bias_k.expand(k.shape[0], 1, -1)], 1)
        v = torch.cat([v, module.bias_v.expand(v.shape[0], 1, -1)], 1)
    if module.add_zero_attn:
        k, v = (torch.cat([x, torch.zeros_like(x[:, :1])], 1) for x in (k, v))
    more = (module.bias_k is not None) + module.add_zero_attn
    if mask is not None:
        each = mask.dim() == 3
        mask = mask.view(q.shape[0], module.num_heads, *mask.shape[1:]) if each else mask
        mask = F.pad(mask, (0, more))
    if padding is not None:
        padding = F.pad(padding if call.batched else padding[None], (0, more))[:, None, None]
        mask = padding if mask is None else mask + padding
    q, k, v = (
        x.reshape(*x.shape[:2], module.num_heads, module.head_dim).transpose(1, 2)
        for x in (q, k, v)
    )
    dropout = module.dropout if module.training else 0.0
    if not call.weights:
        causal = call.causal and padding is None
        out = F.scaled_dot_product_attention(q, k, v, None if causal else mask, dropout, causal)
        return out.transpose(1, 2), None
    scores = (q * module.head_dim**-0.5) @ k.transpose(-2, -1)
    weights = (scores if mask is None else scores + mask).softmax(-1)
    out = F.dropout(weights, dropout) @ v
    weights = weights.mean(1) if call.averaged else weights
    return out.transpose(1, 2), weights if call.batched else weights[0]


def _examples_first(module: Any, x: Tensor, *, batched: bool) -> Tensor:
    """(N, L, E), from that, (L, N, E) or (L, E)."""
    if not batched:
        return x[None]
    return x if module.batch_first else x.transpose(0, 1)


def _as_given(module: Any, x: Tensor, *, batched: bool) -> Tensor:
    """The reverse of `_examples_first`."""
    if not batched:
        return x[0]
    return x if module.batch_first else x.transpose(0, 1)


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """A mask that is added to scores; one of bools is true where nothing is to be looked at."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    made.weight = nn.Parameter(weight.detach().clone(), weight.requires_grad)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    return made


def plain_attention(model: nn.Module) -> nn.Module:
    """Puts attention of stock Linear layers in the place of each `nn.MultiheadAttention`.

    The model computes the same. Its heads can then grow without its stream, and its stream without
    its heads. The parameters of the input projections are new ones: make the optimizer afterwards.

    Args:
        model: Any module that is not growable yet; it is changed in place.

    Returns:
        The model; if it is itself an `nn.MultiheadAttention`, what takes its place.

    Raises:
        UnsupportedModelError: If the model is growable already, or two of its attentions share a
            weight. The model is then as before.

    Example:
        >>> import splitgrow, torch
        >>> from torch import nn
        >>> block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        >>> model = splitgrow.growable(splitgrow.plain_attention(block), torch.randn(2, 5, 8))
        >>> model.expand_layer("self_attn.v_proj", 4).numbers[0].value
        (2, 3)
    """
    if hasattr(type(model), ORIGINAL_CLASS):
        raise UnsupportedModelError(
            "the model is growable already; call splitgrow.plain_attention before "
            "splitgrow.growable, or on what splitgrow.merge makes of it"
        )
    found = [m for m in model.modules() if _is_torchs(m)]
    _refuse_shared(found)
    return _replaced(model, {module: _made(module) for module in found})


def _is_torchs(module: nn.Module) -> bool:
    return type(module) is nn.MultiheadAttention and "forward" not in vars(module)


def _refuse_shared(found: list[Any]) -> None:
    """Makes sure that no two attentions share the weight of an input projection.

    Raises:
        UnsupportedModelError: If two do.
    """
    own = [id(p) for module in found for p in module._parameters.values() if p is not None]  # noqa: SLF001
    if len({*own}) < len(own):
        raise UnsupportedModelError(
            "two nn.MultiheadAttention of the model share a weight, which would be taken apart; "
            "use one module in both places"
        )


def _made(module: Any) -> PlainAttention:
    """The plain attention of one of torch's, with its hooks."""
    made = PlainAttention(module)
    vars(made).update({k: v for k, v in vars(module).items() if k.endswith("_hooks")})
    return made


@temporarily
def _replaced(undo: Undo, model: nn.Module, made: dict[nn.Module, PlainAttention]) -> nn.Module:
    holders, since = holders_in(model) if made else {}, undo.depth
    for module, plain in made.items():
        if module is not model:
            put_in_place_(holders, module, plain, undo)
    undo.commit(since)
    return made.get(model, model)
