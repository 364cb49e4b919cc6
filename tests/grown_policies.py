"""Models, policies and formulas that the tests of policies share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import splitgrow
from splitgrow import Every, Factor, Grower

SIZE = 6
"""Height and width of the images."""


def convolutional(seed: int = 0) -> Any:
    """Two convolutions, a norm, and two Linears, in float64."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12 * (SIZE - 2) ** 2, 10),
        nn.Tanh(),
        nn.Linear(10, 4),
    )
    return splitgrow.growable(model.double(), images(5))


def images(count: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)


def multiply_adds_of(conv1: int, conv2: int, hidden: int, out: int = 4) -> int:
    """Those of a forward pass of the network for one image, by hand."""
    first = 3 * 9 * conv1 * SIZE**2
    second = conv1 * 9 * conv2 * (SIZE - 2) ** 2
    return first + second + conv2 * (SIZE - 2) ** 2 * hidden + hidden * out


def parameters_of(conv1: int, conv2: int, hidden: int, out: int = 4) -> int:
    """The number of parameters of the network, by hand."""
    convolutions = (3 * 9 + 1) * conv1 + 2 * conv1 + (conv1 * 9 + 1) * conv2
    return convolutions + (conv2 * (SIZE - 2) ** 2 + 1) * hidden + (hidden + 1) * out


def widths(model: Any) -> dict[str, int]:
    return {layer.name: layer.width for layer in splitgrow.handle(model).layers}


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)


def policy(model: Any, optimizer: Any = None, scheduler: Any = None, **changes: Any) -> Grower:
    """A policy that grows at steps 2, 4 and 6 to twice the widths, unless told otherwise."""
    options: dict[str, Any] = {"to": Factor(2.0), "when": Every(2), "absorb": False, **changes}
    return Grower(model, optimizer, scheduler, **options)


def train_step(model: Any, optimizer: Any, step: int, inputs: Tensor | None = None) -> float:
    """One step of training on random images and targets, drawn from the step's number."""
    x = images(5, seed=step) if inputs is None else inputs
    optimizer.zero_grad()
    loss = (model(x) - x.mean((1, 2, 3)).unsqueeze(1)).square().mean()
    loss.backward()
    optimizer.step()
    return float(loss.detach())
