"""A layer that grows, an op after it, and a layer that reads it: exact, or fixed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from helpers import assert_equal, randomise
from torch import Tensor, nn

import splitgrow

ROWS = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()
IMAGES = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2)).double()


class Between(nn.Module):
    """``behind(op(self, first(x)))``.

    A look at values has the analysis run on real ones, where nothing but the rules says what growth
    does: no run at other widths would find out that they are wrong.
    """

    def __init__(self, op: Any, first: nn.Module, behind: nn.Module, also: Any, *, looks: bool):
        super().__init__()
        self.first, self.behind, self.op, self.looks = first, behind, op, looks
        for name, value in dict(also).items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        assert not self.looks or x.isfinite().all()
        return self.behind(self.op(self, self.first(x)))


def linear_between(op: Any, *, width: int = 8, also: Any = (), looks: bool = False) -> Between:
    """Linear layers around an op on five rows."""
    first = nn.Linear(3, width)
    return _network(op, first, ROWS, lambda y: nn.Linear(y.shape[-1], 2), also, looks=looks)


def convs_between(op: Any, *, width: int = 8, also: Any = (), looks: bool = False) -> Between:
    """Convolutions around an op on two images; what has fewer dimensions is read by a Linear."""
    first = nn.Conv2d(3, width, 3, padding=1)

    def reader(y: Tensor) -> nn.Module:
        return nn.Conv2d(y.shape[1], 2, 1) if y.dim() == 4 else nn.Linear(y.shape[-1], 2)

    return _network(op, first, IMAGES, reader, also, looks=looks)


def _network(
    op: Any,
    first: nn.Module,
    x: Tensor,
    reader: Callable[[Tensor], nn.Module],
    also: Mapping[str, Any],
    *,
    looks: bool,
) -> Between:
    network = Between(op, first, nn.Identity(), also, looks=False).double()
    with torch.no_grad():
        network.behind = reader(network(x))
    network.looks = looks
    return randomise(network.double()).eval()  # type: ignore[return-value]


def growth_of(network: Between, x: Tensor) -> str:
    """Empty if the first layer grows and the outputs stay; otherwise why it cannot grow."""
    with torch.no_grad():
        before = network(x)
    model: Any = unchecked(splitgrow.growable)(network, x)
    layer = next(layer for layer in model.layers if layer.name == "first")
    if not layer.growable:
        assert layer.reason
        return str(layer.reason)
    unchecked(model.expand_layer)("first", 2 * layer.step)
    with torch.no_grad():
        assert_equal(model(x), before)
    return ""


def unchecked(function: Any) -> Any:
    """The call without its own check in values: here the rules are to be right by themselves."""

    def call(*args: Any) -> Any:
        checks = "check" in inspect.signature(function).parameters
        return function(*args, **({"check": False} if checks else {}))

    return call
