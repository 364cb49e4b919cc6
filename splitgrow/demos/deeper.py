"""The deeper demo: a small network becomes deeper while it trains. It prints nothing."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

import splitgrow
from splitgrow.cli.settings import DemoSettings
from splitgrow.demos.datasets import Dataset
from splitgrow.demos.demo import residual_net
from splitgrow.demos.networks import stages_for
from splitgrow.demos.results import (
    ChainLayer,
    Deepening,
    DeeperResult,
    Evaluation,
    RemovedIdentity,
    TrainingStep,
)
from splitgrow.demos.training import Trainer, Watch, largest, size_of
from splitgrow.growth.edits import Edit

Change = Callable[[Trainer], Edit]


def run(dataset: Dataset, settings: DemoSettings, watch: Watch) -> DeeperResult:
    """Trains, and then again and again inserts something and trains; at last it fuses.

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
        closed, widths = [], [_widths(trainer)]
        for change in changes(stages_for(dataset.size)):
            closed.append(logits)
            _carry_out(trainer, change, logits)
            widths.append(_widths(trainer))
            logits = trainer.train()
        fused = splitgrow.fuse(trainer.model)
        networks = {"before growth": before, "deeper": trainer.model, "fused": fused}
        outputs = {"before growth": closed[0], "deeper": logits, "fused": trainer.logits(fused)}
        measurements = trainer.measure(networks, outputs)
        recoveries = [trainer.recover(generation, old) for generation, old in enumerate(closed)]
    return DeeperResult(
        dataset=dataset.name,
        images=(len(dataset.x_train), len(dataset.x_test)),
        settings=settings,
        steps=trainer.of_kind(TrainingStep),
        evaluations=trainer.of_kind(Evaluation),
        growths=trainer.of_kind(Deepening),
        recoveries=tuple(recoveries),
        measurements=measurements,
        fused_difference=largest(outputs["fused"] - outputs["deeper"]),
        largest_logit=largest(outputs["deeper"]),
        chain=_chain(trainer, widths),
        vanished=_vanished(splitgrow.merge(trainer.model), fused),
        seconds=time.perf_counter() - started,
    )


def changes(stages: int) -> tuple[Change, ...]:
    """The changes to a network of so many stages, in order; training comes in between."""
    last = f"stages.{stages - 1}"
    return (
        _insertion("stem.0", "identity"),
        _insertion(last, "residual"),
        _insertion((f"{last}.conv1", f"{last}.conv2"), "gate"),
        _insertion("stages.0", "block"),
        _widen_the_residual,
    )


def depth(layers: Iterable[splitgrow.Layer]) -> int:
    """The number of layers on the longest way through a network.

    Layers come in order of execution. Those that are tied, as by a residual add, have their readers
    in common. The readers of a layer run after it.
    """
    longest: dict[str, int] = {}
    for layer in reversed(tuple(layers)):
        behind = (longest[reader] for reader in layer.readers if reader in longest)
        longest[layer.name] = 1 + max(behind, default=0)
    return max(longest.values())


def _insertion(after: str | tuple[str, str], kind: str) -> Change:
    return lambda trainer: trainer.handle.insert_layer(after, kind, optimizer=trainer.optimizer)


def _widen_the_residual(trainer: Trainer) -> Edit:
    """Widens the first layer of the branch that was inserted."""
    inserted = (item for edit in trainer.handle.edits for item in edit.inserted)
    branch = next(item.name for item in inserted if item.kind == "residual")
    layer = next(layer for layer in trainer.handle.layers if layer.name.startswith(f"{branch}."))
    units = layer.step * max(1, round(trainer.settings.by * layer.width / layer.step))
    return trainer.handle.expand_layer(layer.name, units, optimizer=trainer.optimizer)


def _carry_out(trainer: Trainer, change: Change, old: Tensor) -> None:
    """Changes the network in a generation of its own, and compares it with the one before.

    `old` are the test logits before.
    """
    handle, before = trainer.handle, _State.of(trainer, old)
    if handle.generation:  # the first edit closes generation 0 by itself
        handle.next_generation()
    edit = change(trainer)
    new = trainer.logits(trainer.model)
    after = _State.of(trainer, new)
    trainer.tell(
        Deepening(
            trainer.step,
            edit,
            largest(new - old),
            loss=(before.loss, after.loss),
            accuracy=(before.accuracy, after.accuracy),
            parameters=(before.parameters, after.parameters),
            fused_parameters=(before.fused_parameters, after.fused_parameters),
            depth=(before.depth, after.depth),
        )
    )


class _State(NamedTuple):
    loss: float
    accuracy: float
    parameters: int
    fused_parameters: int
    depth: int

    @classmethod
    def of(cls, trainer: Trainer, logits: Tensor) -> _State:
        """The state of a network that gives these test logits."""
        return cls(
            *trainer.judge(logits),
            parameters=size_of(trainer.model),
            fused_parameters=size_of(splitgrow.fuse(trainer.model)),
            depth=depth(trainer.handle.layers),
        )


def _widths(trainer: Trainer) -> dict[str, int]:
    return {layer.name: layer.width for layer in trainer.handle.layers}


def _chain(trainer: Trainer, widths: Iterable[Mapping[str, int]]) -> tuple[ChainLayer, ...]:
    inserted = {i.name: i.kind for edit in trainer.handle.edits for i in edit.inserted}
    generations = tuple(widths)

    def insertion_kind(name: str) -> str:
        return next((inserted[i] for i in inserted if f"{name}.".startswith(f"{i}.")), "")

    return tuple(
        ChainLayer(
            layer.name,
            layer.kind,
            insertion_kind(layer.name),
            tuple(known.get(layer.name) for known in generations),
        )
        for layer in trainer.handle.layers
    )


def _vanished(merged: nn.Module, fused: nn.Module) -> tuple[RemovedIdentity, ...]:
    """The types of modules of which fusion leaves fewer."""
    before, after = _types(merged), _types(fused)
    return tuple(
        RemovedIdentity(name, count, after[name])
        for name, count in sorted(before.items())
        if after[name] < count
    )


def _types(network: nn.Module) -> Counter[str]:
    leaves = (m for m in network.modules() if not any(True for _ in m.children()))
    return Counter(type(leaf).__name__ for leaf in leaves)
