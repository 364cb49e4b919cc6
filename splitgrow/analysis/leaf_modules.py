"""Modules that are traced as one op, as they are and as they would be at other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from splitgrow.analysis.ops import entry_of
from splitgrow.layers.split_layer import SplitLayer, stock
from splitgrow.layers.types import layer_type_of

_LEAF_NUMBERS = """
    in_features out_features in_channels out_channels groups num_groups num_features num_channels
    num_parameters embedding_dim nf nx input_size hidden_size proj_size
"""
LEAF_NUMBERS = frozenset(_LEAF_NUMBERS.split())
"""The numbers of layers that growth changes."""


@dataclass(frozen=True)
class Wider:
    """Other widths for a model, which is traced as if it had them.

    Attributes:
        sizes: The numbers of input and output channels of layers, by module path.
        numbers: The numbers that modules hold, by module path and attribute.
        tensors: The lengths of dimensions of modules' tensors, by their names.
    """

    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    numbers: Mapping[tuple[str, str], int] = field(default_factory=dict)
    tensors: Mapping[str, Mapping[int, int]] = field(default_factory=dict)

    def tensor(self, name: str, tensor: Tensor) -> Tensor:
        """A module's tensor as it would be, without values if it has another size."""
        sizes = self.tensors.get(name)
        if sizes is None:
            return tensor
        shape = [sizes.get(dim, size) for dim, size in enumerate(tensor.shape)]
        if shape == list(tensor.shape):
            return tensor
        other = tensor.detach().new_empty(shape)
        return nn.Parameter(other, False) if isinstance(tensor, nn.Parameter) else other


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is traced as one op, and not looked into."""
    return (
        isinstance(module, SplitLayer)
        or layer_type_of(module) is not None
        or entry_of(type(module)) is not None
    )


def shallow(module: nn.Module) -> nn.Module:
    """A module with the same attributes, which keeps them when those of the first change."""
    same: nn.Module = object.__new__(type(module))
    same.__dict__.update(module.__dict__)
    return same


def run_without_values(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of a layer of the meta device on fake tensors of another device."""
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    own = (*layer.named_parameters(), *layer.named_buffers())
    tensors = {name: torch.empty_like(tensor, device=device) for name, tensor in own}
    return functional_call(layer, tensors, args, kwargs)


def run_in_evaluation(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Runs a leaf module in evaluation mode: only shapes count, and its statistics stay."""
    modes = [(part, part.training) for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        return module.forward(*args, **kwargs)
    finally:
        for part, training in modes:
            part.training = training


def resized(module: nn.Module, sizes: tuple[int, int]) -> nn.Module:
    """The plain layer, without values, that a layer would be at other sizes."""
    entry = layer_type_of(stock(module))
    assert entry is not None, type(module)
    return entry.merging.merged(stock(module), sizes, device="meta").eval()


_SIDES = {
    "in_features": 0,
    "in_channels": 0,
    "out_features": 1,
    "out_channels": 1,
    "num_features": 1,
    "num_channels": 1,
}
_NUMBERED = (nn.Linear, nn.GroupNorm, nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase)  # noqa: SLF001


def as_if_resized(module: nn.Module, sizes: tuple[int, int]) -> nn.Module:
    """A module that gives a layer's numbers and the shapes of its results at other sizes.

    For torch's own layers it is a look-alike with the tensors that the layer has: to make even a
    layer without values takes longer than all else that is done with it. It is not to be run.
    """
    layer: Any = stock(module)
    entry = layer_type_of(layer)
    assert entry is not None, type(module)
    torchs_own = type(layer).__module__.startswith("torch.nn.")
    if not (torchs_own and isinstance(layer, _NUMBERED)):
        return resized(module, sizes)
    same = shallow(layer)
    own = vars(same)
    own.update({key: sizes[side] for key, side in _SIDES.items() if key in own})
    if isinstance(layer, nn.GroupNorm):
        own["num_groups"] = sizes[1] // entry.bundle(layer)
    elif "groups" in own and entry.diagonal(layer):
        own["groups"] = sizes[0]
    return same


def outline_of(module: nn.Module) -> nn.Module:
    """A module that gives the shapes of a module's results: of a grown layer a plain one.

    Blocks take a hundred times as long to run on tensors without values as their shapes to tell.
    """
    return as_if_resized(module, module.sizes()) if isinstance(module, SplitLayer) else module
