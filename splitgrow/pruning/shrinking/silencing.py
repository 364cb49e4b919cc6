"""Silencing channels: layers read them with weights of zero, until that is taken back."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from splitgrow.growth.shrinking.block_parts import home_of, marks_of_block
from splitgrow.layers.tensor_holder import split_of
from splitgrow.layers.types import known_layer_type
from splitgrow.layers.types.parametrized_layers import computed_names
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
            if not isinstance(tensor, Tensor) or key in computed_names(module):
                continue
            for dim, marks in along.items():
                positions = marks.nonzero().flatten().to(tensor.device)
                if axes[key][dim].reads and len(positions):
                    _fill_with_zeros_(tensor, dim, positions, undo)


def _fill_with_zeros_(tensor: Tensor, dim: int, positions: Tensor, undo: Undo) -> None:
    values = tensor.detach().index_select(dim, positions)
    undo.on_failure(partial(_give_back_, tensor, dim, positions, values))
    tensor.detach().index_fill_(dim, positions, 0)


def _give_back_(tensor: Tensor, dim: int, positions: Tensor, values: Tensor) -> None:
    with torch.inference_mode(mode=False), torch.no_grad():
        tensor.detach().index_copy_(dim, positions, values)
