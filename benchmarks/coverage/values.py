"""Values that make a comparison mean something: no weight may be hidden behind a zero or a one."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, nn

TINY = 1e-2
"""Parameters that are nowhere larger than this say nothing: a layer scale of 1e-6, a zero bias."""

_ADDED = ("bias", "beta", "shift", "token", "embed", "mean", "pos")


@torch.no_grad()
def randomise(model: nn.Module, keep: Collection[int] = ()) -> None:
    """Gives parameters and running statistics random values, except those whose id is in `keep`."""
    for path, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in keep:
            _randomise_parameter(path.rpartition(".")[2], parameter)
    randomise_statistics(model, keep)


@torch.no_grad()
def randomise_little(model: nn.Module) -> None:
    """Gives random values only to running statistics and to parameters that are (almost) zero."""
    for path, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel() and parameter.abs().max() < TINY:
            _randomise_parameter(path.rpartition(".")[2], parameter)
    randomise_statistics(model)


@torch.no_grad()
def soften(model: nn.Module, keep: Collection[int] = ()) -> None:
    """Makes all parameters a tenth as large, except those whose id is in `keep`."""
    for parameter in model.parameters():
        if parameter.requires_grad and id(parameter) not in keep:
            parameter.mul_(0.1)


def randomise_statistics(model: nn.Module, keep: Collection[int] = ()) -> None:
    """Gives running means and variances random values, except those whose id is in `keep`."""
    for path, buffer in model.named_buffers():
        if id(buffer) in keep:
            continue
        if path.endswith("running_mean"):
            buffer.normal_(std=0.3)
        elif path.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)


def ids_of(model: nn.Module) -> set[int]:
    """The ids of all parameters and buffers."""
    return {id(tensor) for tensor in (*model.parameters(), *model.buffers())}


def _randomise_parameter(name: str, parameter: Tensor) -> None:
    """Weights keep the size of what passes them; factors are near one; what is added is smaller."""
    if not (parameter.is_floating_point() or parameter.is_complex()) or not parameter.numel():
        return
    added = any(word in name for word in _ADDED)
    if name == "weight" and parameter.dim() > 1:
        parameter.normal_(std=parameter[0].numel() ** -0.5)
    elif added:
        parameter.normal_(std=0.3)
    elif parameter.numel() == max(parameter.shape, default=1):  # one factor for each channel
        parameter.uniform_(0.5, 1.5)
    else:
        parameter.normal_(std=parameter[0].numel() ** -0.5)
