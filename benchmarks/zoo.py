"""Claim: real architectures grow as they are, and stay exact.

Each model of torchvision, unmodified and in float64: every growable layer grown once in one edit,
the new blocks set to random values, then merged and fused. Prints how many layers can grow, how far
the outputs are from what the laws say, and how long each step took.

    python -m benchmarks.zoo [MODEL ...]
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import splitgrow
from benchmarks.vision import torchvision

MODELS = (
    "resnet18",
    "densenet121",
    "mobilenet_v3_large",
    "googlenet",
    "vgg11_bn",
    "efficientnet_b0",
    "regnet_y_400mf",
    "shufflenet_v2_x1_0",
)

T = TypeVar("T")


def timed(call: Callable[[], T]) -> tuple[T, str]:
    """What a call returns, and the milliseconds that it took."""
    started = time.perf_counter()
    result = call()
    return result, f"{1000 * (time.perf_counter() - started):.0f}"


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def randomise(module: nn.Module) -> None:
    """Gives every parameter, and the statistics of every batch norm, a value of its own."""
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(std=0.3)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)


@torch.no_grad()
def measure(name: str) -> tuple[str, ...]:
    """One row of the table."""
    torch.manual_seed(0)
    model: Any = torchvision().models.get_model(name, weights=None).double().eval()
    randomise(model)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    before = model(x)
    model, analysis = timed(lambda: splitgrow.growable(model, x))
    growable = [layer for layer in model.layers if layer.growable]
    request = {layer.name: layer.step for layer in growable}
    edit, growth = timed(lambda: model.expand(request))
    law_1 = difference(model(x)[:, : before.shape[1]], before)
    for change in edit.changes:
        for block in list(model.get_submodule(change.name))[1:]:
            randomise(block)
    now = model(x)
    with model.at(0):
        law_3 = torch.equal(model(x), before)
    merged, merging = timed(lambda: splitgrow.merge(model))
    fused, fusing = timed(lambda: splitgrow.fuse(model, check=False))
    return (
        name,
        f"{len(growable)} of {len(model.layers)}",
        f"{edit.parameters:,}",
        f"{law_1:.0e}",
        "bit for bit" if law_3 else "DIFFERS",
        f"{difference(merged(x), now):.0e}",
        f"{difference(fused(x), now):.0e}",
        analysis,
        growth,
        merging,
        fusing,
    )


def main() -> None:
    """Prints the table."""
    warnings.simplefilter("ignore")  # torchvision's, about itself
    table = Table(title="torchvision's models, every growable layer grown in one edit, float64")
    columns = ("model", "layers that grow", "parameters added", "law 1", "law 3", "merge", "fuse")
    for column in (*columns, "analysis ms", "growth ms", "merge ms", "fuse ms"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name in sys.argv[1:] or MODELS:
        table.add_row(*measure(name))
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
