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

from splitgrow.layers.attention import PlainAttention


def written_out(modules: Iterable[nn.Module]) -> dict[nn.Module, Callable[..., Any]]:
    """The forwards in ops, of those modules whose own is not to be traced."""
    forward: Any = PlainAttention.forward
    return {
        module: partial(forward, _Plain(module))
        for module in modules
        if isinstance(module, nn.MultiheadAttention)
        and type(module).forward is nn.MultiheadAttention.forward
        and "forward" not in vars(module)
    }


class _Plain:
    """A `nn.MultiheadAttention` that answers as the plain attention does.

    Args:
        module: The attention. Its numbers may be tracked.
    """

    def __init__(self, module: nn.MultiheadAttention) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        """Answers for all that both have."""
        return getattr(self._module, name)

    @property
    def head_dim(self) -> int:
        """The width of a head, which stays: a plain number."""
        return int.__int__(self._module.embed_dim) // int.__int__(self._module.num_heads)

    def projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all heads, side by side, of inputs (N, L, E)."""
        own = self._module
        query = query.reshape(*query.shape[:2], own.embed_dim)
        key = key.reshape(*key.shape[:2], own.kdim)
        value = value.reshape(*value.shape[:2], own.vdim)
        weight, bias = own.in_proj_weight, own.in_proj_bias
        if weight is not None:
            q, k, v = (
                F.linear(x, weight, bias).chunk(3, -1)[n] for n, x in enumerate((query, key, value))
            )
            return q, k, v
        weights = (own.q_proj_weight, own.k_proj_weight, own.v_proj_weight)
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        q, k, v = map(F.linear, (query, key, value), weights, biases)
        return q, k, v

    def joined(self, heads: Tensor) -> Tensor:
        """The output (N, L, E) of heads (N, L, H, E / H)."""
        own = self._module
        made: Tensor = own.out_proj(heads.reshape(*heads.shape[:2], own.embed_dim))
        return made
