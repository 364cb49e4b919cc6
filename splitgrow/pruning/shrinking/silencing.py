"""Silencing channels: layers read them with weights of zero, until that is taken back."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from splitgrow.growth.shrinking.block_parts import home_of, marks_of_block
from splitgrow.layers.tensor_holder import split_of
from splitgrow.layers.types import known_layer_type
from splitgrow.layers.types.parametrized_layers import PARAMETRIZATIONS, computed_names
from splitgrow.utils.rollback import Undo


def read_nothing_(layer: nn.Module, gone: tuple[Tensor, Tensor], undo: Undo) -> None:
    """Sets to zero the weights with which a layer reads some channels.

    Args:
        layer: The layer.
        gone: The marks of its input and of its output channels.
        undo: Gives them their values again.
    """
    composition = split_of(layer).composition()
    entry, original = composition.layer_type, composition.original
    if entry.diagonal(original) or entry.looks_up:
        return
    for index, module in enumerate(composition.modules):
        like = original if entry.reads_back(original) else home_of(composition, module)
        axes = known_layer_type(like).tensors(like)
        for key, along in marks_of_block(composition, index, gone).items():
            tensor = getattr(module, key, None)
            if not isinstance(tensor, Tensor):
                continue
            found = ((d, m.nonzero().flatten()) for d, m in along.items() if axes[key][d].reads)
            places = {dim: at.to(tensor.device) for dim, at in found if len(at)}
            if places and key in computed_names(module):
                _compute_zeros_(module, key, places, undo)
                continue
            for dim, positions in places.items():
                _fill_with_zeros_(tensor, dim, positions, undo)


class _Given(nn.Module):
    """In the place of a parametrization: it gives the same tensor at each call."""

    def __init__(self, tensor: Tensor) -> None:
        super().__init__()
        self.tensor = tensor

    def forward(self) -> Tensor:
        return self.tensor


def _compute_zeros_(module: nn.Module, key: str, places: Mapping[int, Tensor], undo: Undo) -> None:
    """Has a layer get a computed tensor with zeros at some places."""
    silent = getattr(module, key).detach().clone()
    for dim, positions in places.items():
        silent.index_fill_(dim, positions, 0)
    held = vars(getattr(module, PARAMETRIZATIONS))["_modules"]
    undo.keep(held)
    held[key] = _Given(silent)


def _fill_with_zeros_(tensor: Tensor, dim: int, positions: Tensor, undo: Undo) -> None:
    values = tensor.detach().index_select(dim, positions)
    undo.on_failure(partial(_give_back_, tensor, dim, positions, values))
    tensor.detach().index_fill_(dim, positions, 0)


def _give_back_(tensor: Tensor, dim: int, positions: Tensor, values: Tensor) -> None:
    with torch.inference_mode(mode=False), torch.no_grad():
        tensor.detach().index_copy_(dim, positions, values)
