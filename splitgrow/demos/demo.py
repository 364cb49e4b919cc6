"""The demo: trains a network, grows it twice while it trains, and fuses it. It prints nothing."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable

import torch
from torch import Tensor, nn

import splitgrow
from splitgrow.cli.settings import DemoSettings
from splitgrow.demos.datasets import Dataset
from splitgrow.demos.networks import ResidualNet, stages_for
from splitgrow.demos.results import BlockMap, Evaluation, Growth, Result, TrainingStep
from splitgrow.demos.training import Trainer, Watch, growth_request, largest
from splitgrow.growth import reporting

GENERATIONS = 2  # how often the network grows, and so how many old networks it still holds


def run(dataset: Dataset, settings: DemoSettings, watch: Watch) -> Result:
    """Trains, grows, trains, closes a generation, grows, trains, and fuses; then measures it all.

    `watch` is called with every event as it happens. The same seed gives the same run, and the
    state of torch's own random numbers is left as it was.

    Raises:
        FloatingPointError: if the training diverges.
    """
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        trainer = Trainer(residual_net(dataset, settings), dataset, settings, watch)
        logits = trainer.train()
        before = copy.deepcopy(trainer.model)
        closed = []
        for generation in range(GENERATIONS):
            closed.append(logits)
            _grow(trainer, logits, opens_generation=generation > 0)
            logits = trainer.train()
        networks = {
            "before growth": before,
            "grown": trainer.model,
            "fused": splitgrow.fuse(trainer.model),
        }
        outputs = {"before growth": closed[0], "grown": logits}
        outputs["fused"] = trainer.logits(networks["fused"])
        measurements = trainer.measure(networks, outputs)
        recoveries = [trainer.recover(generation, old) for generation, old in enumerate(closed)]
    return Result(
        dataset=dataset.name,
        images=(len(dataset.x_train), len(dataset.x_test)),
        settings=settings,
        steps=trainer.of_kind(TrainingStep),
        evaluations=trainer.of_kind(Evaluation),
        growths=trainer.of_kind(Growth),
        recoveries=tuple(recoveries),
        measurements=measurements,
        fused_difference=largest(outputs["fused"] - outputs["grown"]),
        largest_logit=largest(outputs["grown"]),
        block_map=_block_map(trainer.model, trainer.handle.layers),
        seconds=time.perf_counter() - started,
    )


def residual_net(dataset: Dataset, settings: DemoSettings) -> ResidualNet:
    """A fresh network that suits the images."""
    return ResidualNet(
        dataset.channels,
        len(dataset.classes),
        width=settings.width,
        stages=stages_for(dataset.size),
    )


def _grow(trainer: Trainer, old: Tensor, *, opens_generation: bool) -> None:
    """Widens every layer inside the network; the optimizer takes the new parameters along.

    `old` are the test logits before, to see the effect of the growth by itself.
    """
    if opens_generation:
        trainer.handle.next_generation()
    request = growth_request(trainer.handle.layers, trainer.settings.by)
    edit = trainer.handle.expand(request, optimizer=trainer.optimizer)
    disturbance = largest(trainer.logits(trainer.model) - old)
    trainer.tell(Growth(trainer.step, edit, disturbance))


def _block_map(model: nn.Module, layers: Iterable[splitgrow.Layer]) -> BlockMap:
    """The blocks of the layer that has most of them; the first of several."""
    maps = (BlockMap(layer.name, reporting.block_map(model, layer.name)) for layer in layers)
    return max(maps, key=lambda blocks: len(blocks.blocks))
