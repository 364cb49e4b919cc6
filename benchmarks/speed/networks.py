"""The networks that are grown and timed, as torchvision or torch has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

import splitgrow
from benchmarks.speed.settings import Settings
from benchmarks.vision import torchvision

_WIDTHS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        name: What results call it, at either size.
        make: Makes it; takes whether it is to be small.
        shape: Of its input.
        quick_shape: Of its input where it is to be small.
    """

    name: str
    make: Callable[[bool], nn.Module]
    shape: tuple[int, ...]
    quick_shape: tuple[int, ...]

    def input(self, settings: Settings) -> Tensor:
        """A batch of random input."""
        shape = self.quick_shape if settings.quick else self.shape
        return torch.randn(shape, device=settings.device)

    def build(self, settings: Settings) -> nn.Module:
        """The network, not grown, in training mode; the same values each time."""
        torch.manual_seed(0)
        return self.make(settings.quick).to(settings.device).train()


def _vgg(small: bool) -> nn.Module:  # noqa: FBT001
    widths = [w // 4 if small and isinstance(w, int) else w for w in _WIDTHS]
    features = torchvision().models.vgg.make_layers(widths, batch_norm=True)
    return nn.Sequential(features, nn.Flatten(), nn.Linear(int(widths[-2]), 100))


def _mlp(small: bool) -> nn.Module:  # noqa: FBT001
    width = 1024 if small else 4096
    hidden = [layer for _ in range(3) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def linears(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers between these widths, with a ReLU behind each but the last."""
    layers = [layer for pair in pairwise(widths) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def _of_torchvision(name: str) -> Callable[[bool], nn.Module]:
    return lambda _: torchvision().models.get_model(name, weights=None)


VGG = Network("VGG-16-BN", _vgg, (64, 3, 32, 32), (16, 3, 32, 32))
MLP = Network("MLP", _mlp, (128, 4096), (64, 1024))
RESNET_18 = Network("ResNet-18", _of_torchvision("resnet18"), (8, 3, 224, 224), (4, 3, 64, 64))
RESNET_50 = Network("ResNet-50", _of_torchvision("resnet50"), (8, 3, 224, 224), (2, 3, 64, 64))
MOBILENET = Network(
    "MobileNetV2", _of_torchvision("mobilenet_v2"), (16, 3, 224, 224), (2, 3, 64, 64)
)
_ALL = (VGG, RESNET_18, RESNET_50, MOBILENET, MLP)


def networks(settings: Settings) -> tuple[Network, ...]:
    """Those that most claims run on."""
    return (VGG, RESNET_18, MLP) if settings.quick else _ALL


def network(name: str) -> Network:
    """The network of that name."""
    return next(one for one in _ALL if one.name == name)


def grown(one: Network, settings: Settings, fraction: float, **options: Any) -> Any:
    """A network of which every layer that can grow has grown once, in one edit.

    Args:
        one: The network.
        settings: Its size and device.
        fraction: How much wider each layer becomes.
        **options: Passed to `expand`.
    """
    model = growable(one, settings)
    model.expand(request(model, fraction), **options)
    return model


def growable(one: Network, settings: Settings) -> Any:
    """A network that can grow."""
    model = one.build(settings)
    return splitgrow.growable(model, one.input(settings)[:2])


def request(model: Any, fraction: float) -> dict[int | str, int]:
    """Asks every layer for a share of its width; layers that are tied once."""
    return _each(model, lambda layer: max(1, round(layer.width * fraction)))


def request_units(model: Any, units: int) -> dict[int | str, int]:
    """Asks every layer for a number of units; layers that are tied once."""
    return _each(model, lambda _: units)


def _each(model: Any, units: Callable[[Any], int]) -> dict[int | str, int]:
    asked: dict[int | str, int] = {}
    tied: set[str] = set()
    for layer in splitgrow.handle(model).layers:
        if layer.growable and layer.name not in tied:
            asked[layer.name] = -(-units(layer) // layer.step) * layer.step
            tied.update(layer.group)
    return asked
