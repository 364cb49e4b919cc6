"""A model that torch.fx cannot trace runs faster once its norms are folded in it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import nn

import splitgrow
from benchmarks.speed.networks import request
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import compared, inference
from benchmarks.vision import torchvision


def run(settings: Settings) -> Iterator[Measurement]:
    """Each model grown by a quarter, on one small image, where norms cost most."""
    for name, make in _MODELS.items():
        size = 64 if settings.quick else 128
        x = torch.randn(1, 3, size, size, device=settings.device)
        torch.manual_seed(0)
        model: Any = splitgrow.growable(make().to(settings.device).eval(), x)
        model.expand(request(model, 0.25))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that there is no graph
            fused = splitgrow.fuse(model)
        if fused.meta["way"] != "own class" or not fused.meta["folded"]:
            raise RuntimeError(f"{name} was to be fused without a graph")
        contestants = {
            "fused": inference(fused, x),
            "merged": inference(splitgrow.merge(model).eval(), x),
        }
        yield compared(name, contestants, settings, "fused", "merged")


class _UNet(nn.Module):
    """A U-Net as segmentation-models-pytorch writes it: it checks the size of its input."""

    def __init__(self) -> None:
        super().__init__()
        encoder: Any = torchvision().models.resnet18(weights=None)
        self.stem = nn.Sequential(encoder.conv1, encoder.bn1, encoder.relu)
        self.pool = encoder.maxpool
        self.stages = nn.ModuleList(
            [encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4]
        )
        widths = ((512, 256), (256, 128), (128, 64), (64, 64))
        skips = (256, 128, 64, 64)
        self.ups = nn.ModuleList(
            nn.Sequential(_normed(above + skip, out), _normed(out, out))
            for (above, out), skip in zip(widths, skips, strict=True)
        )
        self.head = nn.Conv2d(64, 2, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] % 32:
            raise ValueError("the size of an image must be a multiple of 32")
        seen = [self.stem(x)]
        x = self.pool(seen[0])
        for stage in self.stages:
            x = stage(x)
            seen.append(x)
        for up, skip in zip(self.ups, reversed(seen[:-1]), strict=True):
            x = nn.functional.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = up(torch.cat([x, skip], 1))
        return self.head(x)


def _normed(inputs: int, outputs: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _of_transformers(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torchvision()  # which transformers imports, and which torch has to be told of first
        library = import_module("transformers")
        made: nn.Module = getattr(library, model)(getattr(library, config)(**options))
        return made

    return make


_MODELS: dict[str, Callable[[], nn.Module]] = {
    "transformers' ResNet-18": _of_transformers(
        "ResNetModel",
        "ResNetConfig",
        layer_type="basic",
        hidden_sizes=[64, 128, 256, 512],
        depths=[2, 2, 2, 2],
    ),
    "transformers' MobileNetV2": _of_transformers("MobileNetV2Model", "MobileNetV2Config"),
    "a U-Net": _UNet,
}

CLAIM = Claim(
    "own-class-inference",
    "Inference of `splitgrow.fuse(grown)` where torch.fx cannot trace, norms folded in the merged "
    "model, over that of the merged model",
    run,
)
