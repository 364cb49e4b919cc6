"""Models whose forward is a function that a test writes down, and the laws on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from helpers import assert_equal, leading, outputs_of, randomise, randomise_new_blocks
from torch import Tensor, nn

import splitgrow

X = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

Forward = Callable[[Any, Tensor], Any]


class Written(nn.Module):
    """Two layers of eight units, a head that reads eight, and a forward that a test wrote."""

    def __init__(self, forward: Forward, held: dict[str, Any]) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(5, 8), nn.Linear(5, 8)
        self.head = nn.Linear(8, 3)
        self.written = forward
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Any:
        return self.written(self, x)


def written(forward: Forward, **held: Any) -> Any:
    """A model with this forward, in float64 and evaluation mode; `held` are its attributes."""
    torch.manual_seed(0)
    return randomise(Written(forward, held).double().eval())


def reasons(model: Any) -> dict[str, str]:
    """Why each layer cannot grow; empty for those that can."""
    return {layer.name: layer.reason for layer in model.layers}


def laws_hold(model: Any, x: Tensor = X) -> list[str]:
    """Grows every layer that can, one by one and twice; fails where an old output changes.

    Returns:
        The layers that grew.
    """
    grew = [layer.name for layer in model.layers if layer.growable]
    before = outputs_of(model, x)
    for _ in range(2):
        for layer in model.layers:
            if layer.growable:
                model.expand_layer(layer.name, layer.step)
                assert_equal(leading(outputs_of(model, x), before), before)
    randomise_new_blocks(model)
    assert_equal(outputs_of(splitgrow.merge(model), x), outputs_of(model, x))
    return grew
