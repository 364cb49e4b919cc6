"""One kernel for all channels costs no more than a grouped convolution that repeats it.

The ways by hand are a loop over the channels, and a grouped convolution whose weights are set to
the kernel before each step and whose gradients are summed after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import splitgrow
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import Call, stated
from benchmarks.speed.timing import paired


@dataclass(frozen=True)
class _Case:
    """One size: the shape of the input, and of the kernels."""

    shape: tuple[int, ...]
    kernel_size: int
    multiplier: int = 1

    @property
    def name(self) -> str:
        """The size in words."""
        shape = " by ".join(map(str, self.shape))
        kernels = "a kernel" if self.multiplier == 1 else f"{self.multiplier} kernels"
        return f"{shape}, {kernels} of {self.kernel_size} by {self.kernel_size}"


_CASES = (
    _Case((16, 64, 56, 56), 3),
    _Case((16, 256, 14, 14), 3),
    _Case((16, 64, 56, 56), 7),
    _Case((16, 64, 56, 56), 3, multiplier=2),
)
_QUICK = (_Case((2, 16, 14, 14), 3), _Case((2, 16, 14, 14), 3, multiplier=2))


def run(settings: Settings) -> Iterator[Measurement]:
    """A step forward and backward, to input, weight and bias, for several sizes."""
    for case in _QUICK if settings.quick else _CASES:
        x = torch.randn(case.shape, device=settings.device, requires_grad=True)
        options: dict[str, Any] = {"padding": case.kernel_size // 2, "device": settings.device}
        shared = splitgrow.SharedKernelConv2d(
            case.kernel_size, multiplier=case.multiplier, **options
        )
        kernel = nn.Conv2d(1, case.multiplier, case.kernel_size, **options)
        contestants = {
            "shared": _step(shared, shared, x),
            "loop": _step(kernel, lambda x, kernel=kernel: _loop(kernel, x), x),
            "grouped": _grouped_step(kernel, shared.depthwise(x.shape[1]), x),
        }
        times = paired(contestants, settings)
        yield stated(f"{case.name}, over a loop", times, "shared", "loop")
        yield stated(f"{case.name}, over a grouped convolution", times, "shared", "grouped")


def _step(layer: nn.Module, forward: Callable[[Tensor], Tensor], x: Tensor) -> Call:
    gradient = torch.randn_like(forward(x))

    def step() -> None:
        layer.zero_grad()
        x.grad = None
        forward(x).backward(gradient)

    return step


def _loop(kernel: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([kernel(channel) for channel in x.split(1, 1)], 1)


def _grouped_step(kernel: Any, grouped: Any, x: Tensor) -> Call:
    channels = x.shape[1]
    backward = _step(grouped, grouped, x)

    def step() -> None:
        with torch.no_grad():
            grouped.weight.copy_(kernel.weight.repeat(channels, 1, 1, 1))
            grouped.bias.copy_(kernel.bias.repeat(channels))
        backward()
        kernel.weight.grad = grouped.weight.grad.unflatten(0, (channels, -1)).sum(0)
        kernel.bias.grad = grouped.bias.grad.unflatten(0, (channels, -1)).sum(0)

    return step


CLAIM = Claim(
    "shared-kernel",
    "Forward and backward pass of `SharedKernelConv2d` over those of a loop over the channels, and "
    "of a grouped convolution into which the kernel is repeated and whose gradients are summed",
    run,
)
