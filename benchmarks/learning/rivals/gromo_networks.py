"""The same networks of gromo's containers, with the weights of plain ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from itertools import chain
from typing import Any

import torch
from torch import nn

CONVOLUTIONS = {"restricted": "RestrictedConv2dGrowingModule", "full": "FullConv2dGrowingModule"}


def of_gromo(path: str) -> Any:
    """A module of gromo; it is not imported where it is not installed."""
    return import_module(f"gromo.{path}")


def made(name: str, hidden: Sequence[int], *, convolution: str, relu: nn.Module) -> Any:
    """A container of gromo.

    Args:
        name: The ground's name.
        hidden: The hidden widths.
        convolution: "restricted" or "full": gromo's class of convolutions.
        relu: The activation of the VGG and the ResNet.
    """
    kind = getattr(of_gromo("modules.conv2d_growing_module"), CONVOLUTIONS[convolution])
    if name == "mlp":
        return _mlp(hidden)
    if name == "vgg":
        parts = [[*pair, "M"] for pair in zip(hidden, (24, 48, 96), strict=True)]
        return of_gromo("containers.vgg").VGG(
            [*chain(*parts)],
            target_cfg=[24, 24, "M", 48, 48, "M", 96, 96, "M"],
            activation=relu,
            num_classes=100,
            number_of_fc_layers=1,
            input_spatial_shape=(8, 8),  # its classifier then reads the mean over all places
            growing_conv_type=kind,
        )
    return of_gromo("containers.resnet").init_full_resnet_structure(
        (3, 32, 32),
        out_features=10,
        activation=relu,
        hidden_channels=tuple(tuple(hidden[i : i + 2]) for i in (0, 2, 4)),
        inplanes=16,
        nb_stages=3,
        skip_first_downsample=False,
        growing_conv_type=kind,
    )


def _mlp(hidden: Sequence[int]) -> Any:
    """An MLP, in which all hidden layers are as wide: it takes one width."""
    (width,) = set(hidden)
    module = of_gromo("containers.growing_mlp")
    return module.GrowingMLP((1, 32, 32), 100, width, len(hidden), nn.GELU())


def copy_(source: nn.Module, target: nn.Module) -> None:
    """Copies parameters and buffers in their order.

    Raises:
        ValueError: If they do not fit.
    """
    ours, theirs = _kept(source), _kept(target)
    if [*map(_shape, ours)] != [*map(_shape, theirs)]:
        message = f"the tensors differ: {[*map(_shape, ours)]}, {[*map(_shape, theirs)]}"
        raise ValueError(message)
    with torch.no_grad():
        for one, other in zip(ours, theirs, strict=True):
            other.copy_(one)


def _kept(model: nn.Module) -> list[torch.Tensor]:
    """Parameters and buffers, each once, without the buffers that a state_dict leaves out."""
    kept = model.state_dict().keys()
    named = chain(model.named_parameters(), model.named_buffers())
    return [tensor for name, tensor in named if name in kept]


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def growing_layers(model: Any) -> list[Any]:
    """The layers or blocks whose hidden widths grow, in the order of the network."""
    block = of_gromo("containers.growing_block").GrowingBlock
    blocks = [module for module in model.modules() if isinstance(module, block)]
    return blocks or list(model._growable_layers)  # noqa: SLF001 - in the network's order


def silent() -> None:
    """Leaves out gromo's warnings, which come at each growth."""
    warnings.filterwarnings("ignore", module=r"gromo\..*")
    warnings.filterwarnings("ignore", message="Initializing zero-element tensors")
