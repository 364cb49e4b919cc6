"""The layers of timm and transformers, each between two plain ones: the laws hold for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    assert_equal,
    assert_identical,
    largest_difference,
    leading,
    outputs_of,
    randomise,
    randomise_new_blocks,
    split_layers,
    train_steps,
)
from torch import Tensor, nn

import splitgrow
from benchmarks.vision import torchvision

pytestmark = pytest.mark.zoo

IMAGES = torch.randn(3, 3, 9, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
ROWS = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def timm_layers() -> Any:
    torchvision()  # timm imports it
    from timm import layers  # noqa: PLC0415

    return layers


def norm(name: str, **options: Any) -> nn.Module:
    return getattr(timm_layers(), name)(8, **options)


def conv(name: str, **options: Any) -> nn.Module:
    module = __import__(f"timm.layers.{name}", fromlist=["x"]) if name.islower() else timm_layers()
    return getattr(module, options.pop("kind", name))(8, 6, 3, **options)
