"""Modules that are taken down as one op, and what they make of tensors without values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call

from splitgrow.kinds import kind_of
from splitgrow.rules import elementwise, rule_of
from splitgrow.split import SplitLayer, stock

_LEAF_NUMBERS = """
    in_features out_features in_channels out_channels groups num_groups num_features num_channels
    num_parameters embedding_dim nf nx
"""
LEAF_NUMBERS = frozenset(_LEAF_NUMBERS.split())
"""The numbers of layers that growth changes."""


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is taken down as one op, not looked into."""
    known = kind_of(module) is not None or rule_of(type(module)) is not None
    return isinstance(module, SplitLayer) or known


def shallow(module: nn.Module) -> nn.Module:
    """A module with the same attributes, which keeps them when the other's are changed."""
    same: nn.Module = object.__new__(type(module))
    same.__dict__.update(module.__dict__)
    return same


def run_without_values(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a layer of the meta device makes of fake tensors of another device."""
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    own = (*layer.named_parameters(), *layer.named_buffers())
    tensors = {name: torch.empty_like(tensor, device=device) for name, tensor in own}
    return functional_call(layer, tensors, args, kwargs)


def _autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def result_of_leaf(module: nn.Module, args: tuple[Any, ...]) -> Tensor | None:
    """What a leaf module makes of a fake tensor, where its shape is known without running it."""
    x = args[0] if len(args) == 1 else None
    if not isinstance(x, FakeTensor) or _autocast(x.device.type):
        return None
    kind, weight = kind_of(module), getattr(module, "weight", None)
    if isinstance(module, SplitLayer) or (weight is not None and weight.dtype != x.dtype):
        return None
    if kind is not None:
        shape = kind.output_shape(module, tuple(x.shape))
        return x.new_empty(shape) if shape is not None else None
    if rule_of(type(module)) is not elementwise.elementwise or list(module.parameters()):
        return None
    return x if getattr(module, "inplace", False) else torch.empty_like(x)


def resized(module: nn.Module, sizes: tuple[int, int]) -> nn.Module:
    """The plain layer, without values, that a layer would be at other sizes."""
    kind = kind_of(stock(module))
    assert kind is not None, type(module)
    return kind.build_merged(stock(module), sizes, device="meta").eval()
