"""The first values of new blocks, one function for each way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from splitgrow.growth.edits import LayerChange
from splitgrow.layers.types import layer_type_of_class

Initializer = Callable[[nn.Module, str, Sequence[bool]], None]
"""Sets a block's values in place, given the block, what it is for ("new" or "helper"), and for each
of the channels that it adds (outputs or inputs) whether that is silent at birth."""


def silent_channels(change: LayerChange, kind: str) -> list[bool]:
    """For each channel that a block adds, whether it is zero until it learns."""
    insertions = change.ins if kind == "helper" else change.outs
    silent = change.silent_ins if kind == "helper" else change.silent_outs
    pairs = zip(insertions, silent, strict=True)
    return [flag for (_, count), flag in pairs for _ in range(count)]


def zero(block: nn.Module, kind: str, silent: Sequence[bool]) -> None:
    """Helpers zero, new units as torch initialises a layer of their shape.

    The old outputs are unchanged, since helpers add nothing yet. Helpers learn from the first step
    and new units from the second; were both zero, neither would ever learn. Where units must be
    silent at birth it is the other way round: they are zero, and helpers that read them are not.
    """
    layer = layer_type_of_class(type(block))
    assert layer is not None, type(block)
    side = "in" if kind == "helper" else "out"
    with torch.no_grad():
        for name, axes in layer.tensors(block).items():
            tensor = getattr(block, name)
            if not isinstance(tensor, nn.Parameter):
                continue
            if kind != "helper" and layer.diagonal(block) and name != "bias":
                continue  # it makes zeros of zeros whatever its weight is
            _zero_channels(tensor, axes, side, [flag == (kind != "helper") for flag in silent])


def _zero_channels(tensor: nn.Parameter, axes: object, side: str, chosen: Sequence[bool]) -> None:
    """Sets the slices of a tensor to zero that belong to the chosen channels."""
    if all(chosen):
        tensor.zero_()
        return
    assert isinstance(axes, dict)
    for dim, along in axes.items():
        if along.side == side and any(chosen):
            mask = torch.tensor(chosen, device=tensor.device)
            # One of several equal sections stands for all of them.
            section = mask.reshape(along.sections, -1).any(0)
            tensor.index_fill_(dim, section.nonzero().flatten(), 0)


def stirred(block: nn.Module, kind: str, silent: Sequence[bool]) -> None:
    """Helpers zero, and new units with values that no formula could hide behind, for trials.

    Where units must be silent at birth they are as `zero` has them.
    """
    zero(block, kind, silent)
    if kind == "helper" or any(silent):
        return
    with torch.no_grad():
        for name, tensor in (*block.named_parameters(), *block.named_buffers()):
            if not tensor.is_floating_point():
                continue
            if name == "running_var" or (name == "weight" and tensor.dim() == 1):
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() == 1:
                tensor.normal_(std=0.3)


_INITIALIZERS: dict[str, Initializer] = {"zero": zero}


def initializer_of(name: str) -> Initializer:
    """The initializer of a name.

    Raises:
        ValueError: If there is none.
    """
    if name not in _INITIALIZERS:
        raise ValueError(f"no initializer {name!r}; there are {', '.join(sorted(_INITIALIZERS))}")
    return _INITIALIZERS[name]
