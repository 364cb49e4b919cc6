"""The growable model in what a trainer holds."""

from __future__ import annotations

from torch import nn

import splitgrow


def find_growable(model: nn.Module) -> nn.Module:
    """The growable model in what a trainer holds, which may have a loss or a wrapper around it.

    Args:
        model: The trainer's model.

    Raises:
        UnsupportedModelError: If there is none.

    Example:
        >>> import torch
        >>> net = splitgrow.growable(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.ones(1, 2))
        >>> find_growable(nn.ModuleDict({"net": net})) is net
        True
    """
    for module in model.modules():
        try:
            splitgrow.handle(module)
        except splitgrow.SplitGrowError:
            continue
        return module
    raise splitgrow.UnsupportedModelError(
        f"no part of the {type(model).__name__} is growable: pass the Trainer what "
        f"splitgrow.growable(model, example_inputs) returns"
    )
