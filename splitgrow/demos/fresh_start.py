"""Networks from scratch: every parameter gets a fresh value by one rule for all networks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

Moments = Mapping[str, tuple[float, float]]
"""The mean and the deviation of each parameter's values, by name."""


def moments_of(network: nn.Module) -> Moments:
    """The mean and the deviation of each parameter's values."""
    return {
        name: (
            parameter.detach().double().mean().item(),
            parameter.detach().double().std(correction=0).item(),
        )
        for name, parameter in network.named_parameters()
        if parameter.numel()
    }


def restart_(network: nn.Module, moments: Moments) -> tuple[str, ...]:
    """Initialises a network anew, as if it had just been made with its widths of today.

    Every module with a `reset_parameters` is given to it, which all layers of torch have; modules
    come after those inside them. A parameter that no such module holds, such as a class token, is
    drawn from the normal distribution with its moments; one with deviation 0 stays constant.

    Args:
        network: The network; values and running statistics change in place.
        moments: Those of the parameters that it would have, by name.

    Returns:
        The names of the parameters that were drawn by their moments.
    """
    drawn = set()
    for path, module in reversed([*network.named_modules()]):
        # The two of torch that are spelled otherwise: nn.MultiheadAttention and nn.Transformer.
        reset = getattr(module, "reset_parameters", None) or getattr(
            module, "_reset_parameters", None
        )
        if callable(reset):
            reset()
            continue
        for name, parameter in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            mean, deviation = moments.get(full, (0.0, 0.0))
            with torch.no_grad():
                parameter.normal_(mean, deviation)
            drawn.add(full)
    return tuple(name for name, _ in network.named_parameters() if name in drawn)
