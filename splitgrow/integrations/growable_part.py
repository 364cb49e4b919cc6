"""The growable model in what a trainer holds, and the wrapper around that."""

from __future__ import annotations

import gc

from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

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


def find_wrapper(model: nn.Module) -> DistributedDataParallel | None:
    """The wrapper for several processes around a trainer's model, if a trainer keeps it to itself.

    Args:
        model: The trainer's model.

    Example:
        >>> find_wrapper(nn.Linear(2, 3)) is None
        True
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    living = (each for each in gc.get_objects() if issubclass(type(each), DistributedDataParallel))
    return next((each for each in living if each.module is model), None)
