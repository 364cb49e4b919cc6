"""Small layers that keep their blocks train about as fast as plain ones.

Of so small a network, a step's time goes to calls more than to arithmetic. A parameter costs the
optimizer and autograd as much time as if it were ten times as large, and a layer in blocks has
more of them. So each case is also measured after `consolidate`, and with an optimizer that takes
all parameters in one call (`fused=True`), in both networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

import splitgrow
from benchmarks.speed.claims.absorbed_training import BATCHES, NETWORKS, STEPS
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import stated, training_step
from benchmarks.speed.timing import paired

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(torch.optim.SGD, lr=1e-4, momentum=0.9),
    "AdamW": torch.optim.AdamW,
    "AdamW, fused": partial(torch.optim.AdamW, fused=True),
}


def run(settings: Settings) -> Iterator[Measurement]:
    """Each network with each size of batch and each optimizer."""
    for name, (make, shape) in NETWORKS.items():
        for batch in BATCHES[:1] if settings.quick else BATCHES:
            x = torch.randn(batch, *shape, device=settings.device)
            for title, optimizer in _OPTIMIZERS.items():
                models = {
                    "in blocks": _grown(make, x, consolidate=False),
                    "consolidated": _grown(make, x, consolidate=True),
                    "plain": make(STEPS + 1).to(settings.device).train(),
                }
                calls = {
                    way: training_step(model, x, optimizer=optimizer(model.parameters()))
                    for way, model in models.items()
                }
                times = paired(calls, settings)
                case = f"{name}, batch {batch}, {title}"
                yield stated(case, times, "in blocks", "plain")
                yield stated(f"{case}, consolidated", times, "consolidated", "plain")


def _grown(make: Callable[[int], nn.Module], x: Tensor, *, consolidate: bool) -> nn.Module:
    """A network grown from a quarter to its whole widths in equal steps, nothing frozen."""
    model = splitgrow.growable(make(1).to(x.device), x[:2])
    units = {layer.name: layer.width for layer in model.layers[:-1]}  # all but the head
    for _ in range(STEPS):
        model.expand(units, freeze=False)
    if consolidate:
        model.consolidate()
    return model.train()


CLAIM = Claim(
    "small-layers",
    "Training step after three growths from a quarter of the widths with `freeze=False`, blocks "
    "kept, over that of a plain network of the same widths, at small batches",
    run,
)
