"""A network that grew to learn trains as fast as one made so wide, once `absorb` made it plain."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import AdamW

import splitgrow
from benchmarks.speed.networks import linears
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import stated, training_step
from benchmarks.speed.timing import paired

BATCHES, STEPS = (16, 32, 64), 3


def _cnn(share: int) -> nn.Module:
    """Four convolutions of 24 to 96 channels, or of a share of quarters of these."""
    widths = [1, *(share * width for width in (6, 12, 12, 24))]
    layers: list[nn.Module] = []
    for number, (ins, outs) in enumerate(pairwise(widths)):
        conv = nn.Conv2d(ins, outs, 3, stride=1 + number % 2, padding=1, bias=False)
        layers += [conv, nn.BatchNorm2d(outs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 100))


def _mlp(share: int) -> nn.Module:
    """Three hidden layers of 256 units, or of a share of quarters of these."""
    return linears((784, *3 * (share * 64,), 10))


NETWORKS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "CNN": (_cnn, (1, 28, 28)),
    "MLP": (_mlp, (784,)),
}


def run(settings: Settings) -> Iterator[Measurement]:
    """Each network with each size of batch; beside it before it was absorbed."""
    for name, (make, shape) in NETWORKS.items():
        for batch in BATCHES[:1] if settings.quick else BATCHES:
            x = torch.randn(batch, *shape, device=settings.device)
            blocks, _ = _grown(make, x, absorb=False)
            absorbed, own = _grown(make, x, absorb=True)
            plain = make(STEPS + 1).to(settings.device)
            calls = {
                "absorbed": training_step(absorbed, x, optimizer=own),
                "plain": training_step(plain, x, optimizer=AdamW(plain.parameters())),
                "in blocks": training_step(blocks, x, optimizer=AdamW(blocks.parameters())),
            }
            times = paired(calls, settings)
            yield stated(f"{name}, batch {batch}", times, "absorbed", "plain")
            yield stated(f"{name}, batch {batch}, in blocks", times, "in blocks", "plain")


def _grown(
    make: Callable[[int], nn.Module], x: Tensor, *, absorb: bool
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A network grown from a quarter to its whole widths, a step of training after each growth."""
    model = splitgrow.growable(make(1).to(x.device), x[:2])
    optimizer = AdamW(model.parameters())
    units = {layer.name: layer.width for layer in model.layers[:-1]}  # all but the head
    for _ in range(STEPS):
        model.expand(units, freeze=False, optimizer=optimizer)
        training_step(model, x, optimizer=optimizer)()
    if absorb:
        model.absorb(optimizer=optimizer)
    return model, optimizer


CLAIM = Claim(
    "absorbed-training",
    "Training step with AdamW after three growths from a quarter of the widths and `absorb`, over "
    "that of a plain network of the same widths, at small batches; beside it without `absorb`",
    run,
)
