"""The demo: trains a network, grows it twice while it trains, and fuses it. It prints nothing."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

import splitgrow
from splitgrow import reporting
from splitgrow.cli.datasets import Dataset
from splitgrow.cli.networks import ResidualNet, stages_for
from splitgrow.cli.results import (
    BlockMap,
    Evaluation,
    Event,
    Growth,
    Measurement,
    Phase,
    Recovery,
    Result,
    Step,
)
from splitgrow.cli.settings import DemoSettings

GENERATIONS = 2  # how often the network grows, and so how many old networks it still holds
_EVALUATION_BATCH = 512
_TIMED_ROUNDS = 15

Watch = Callable[[Event], None]


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
        trainer = _Trainer(dataset, settings, watch)
        logits = trainer.train()
        before = copy.deepcopy(trainer.model)
        closed = []
        for generation in range(GENERATIONS):
            closed.append(logits)
            trainer.grow(logits, opens_generation=generation > 0)
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
        steps=_of_kind(trainer.events, Step),
        evaluations=_of_kind(trainer.events, Evaluation),
        growths=_of_kind(trainer.events, Growth),
        recoveries=tuple(recoveries),
        measurements=tuple(measurements),
        fused_difference=_largest(outputs["fused"] - outputs["grown"]),
        largest_logit=_largest(outputs["grown"]),
        block_map=_block_map(trainer.model, trainer.grown.layers),
        seconds=time.perf_counter() - started,
    )


def growth_request(layers: Iterable[splitgrow.Layer], fraction: float) -> dict[int | str, int]:
    """The units to add so that every width inside the network grows by about `fraction`.

    Layers that are tied grow together, so one of each group is named. The layer that makes the
    logits keeps its width: nothing reads it, and its units are the classes.
    """
    request: dict[int | str, int] = {}
    seen: set[str] = set()
    for layer in layers:
        if layer.growable and layer.readers and layer.name not in seen:
            request[layer.name] = layer.step * max(1, round(fraction * layer.width / layer.step))
        seen.update((layer.name, *layer.group))
    return request


def one_cycle(step: int, steps: int) -> float:
    """The share of the peak learning rate at a step: linearly up, then down along a cosine.

    Reference: Smith and Topin, Super-Convergence (the shape of the cycle).
    """
    rise = max(1, round(0.3 * steps))
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


class _Trainer:
    """The model, its optimizer and schedule, and what was seen so far."""

    def __init__(self, dataset: Dataset, settings: DemoSettings, watch: Watch) -> None:
        self.dataset, self.settings, self._watch = dataset, settings, watch
        self.events: list[Event] = []
        self._step = 0
        net = ResidualNet(
            dataset.channels,
            len(dataset.classes),
            width=settings.width,
            stages=stages_for(dataset.size),
        )
        self.model = splitgrow.growable(net, dataset.x_test[:2])
        self.grown = splitgrow.handle(self.model)  # the model's own new methods, known to mypy
        self._optimizer = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate)
        batches = -(-len(dataset.x_train) // settings.batch_size)
        self._steps = settings.epochs * batches  # of one phase
        # One schedule for the whole run, which goes on through every growth. It rises anew in each
        # phase: Adam's first steps on new parameters are as long as the rate, whatever their
        # gradients, so a growth at the full rate would make the loss jump.
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: one_cycle(step % self._steps, self._steps)
        )

    def train(self) -> Tensor:
        """Trains the open generation for the epochs of one phase; the test logits at its end."""
        self._tell(Phase(self.grown.generation, self._steps))
        for epoch in range(1, self.settings.epochs + 1):
            self.model.train()
            order = torch.randperm(len(self.dataset.x_train))
            for indices in torch.split(order, self.settings.batch_size):
                self._train_step(epoch, indices)
            logits = self.logits(self.model)
            loss = functional.cross_entropy(logits, self.dataset.y_test)
            self._check_finite(loss)
            generation, accuracy = self.grown.generation, self.accuracy(logits)
            self._tell(Evaluation(self._step, generation, loss.item(), accuracy))
        return logits

    def _train_step(self, epoch: int, indices: Tensor) -> None:
        labels = self.dataset.y_train[indices]
        logits = self.model(self.dataset.x_train[indices])
        loss = functional.cross_entropy(logits, labels)
        self._check_finite(loss)
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # so in torch's stubs
        self._optimizer.step()
        self._schedule.step()
        self._step += 1
        accuracy = (logits.argmax(1) == labels).float().mean().item()
        self._tell(Step(self._step, self.grown.generation, epoch, loss.item(), accuracy))

    def grow(self, old: Tensor, *, opens_generation: bool) -> None:
        """Widens every layer inside the network; the optimizer takes the new parameters along.

        `old` are the test logits before, to see what the growth by itself does to them.
        """
        if opens_generation:
            self.grown.next_generation()
        request = growth_request(self.grown.layers, self.settings.grow)
        edit = self.grown.expand(request, optimizer=self._optimizer)
        disturbance = _largest(self.logits(self.model) - old)
        self._tell(Growth(self._step, edit, disturbance))

    def recover(self, generation: int, recorded: Tensor) -> Recovery:
        """Compares a closed generation's test logits with those `recorded` when it was closed."""
        with self.grown.at(generation):
            recovered = self.logits(self.model)
        return Recovery(
            generation,
            accuracy=self.accuracy(recovered),
            exact=torch.equal(recovered, recorded),
            largest_difference=_largest(recovered - recorded),
        )

    def measure(
        self, networks: Mapping[str, nn.Module], outputs: Mapping[str, Tensor]
    ) -> list[Measurement]:
        """Accuracy, size and speed of each of the networks, whose test logits are known."""
        batch = self.dataset.x_test[: self.settings.batch_size]
        milliseconds = _milliseconds(networks, batch)
        return [
            Measurement(
                name,
                accuracy=self.accuracy(outputs[name]),
                parameters=sum(parameter.numel() for parameter in network.parameters()),
                milliseconds=milliseconds[name],
            )
            for name, network in networks.items()
        ]

    def logits(self, network: nn.Module) -> Tensor:
        """The logits of all test images, in eval mode."""
        network.eval()
        batches = torch.split(self.dataset.x_test, _EVALUATION_BATCH)
        with torch.no_grad():
            return torch.cat([network(x) for x in batches])

    def accuracy(self, logits: Tensor) -> float:
        """The share of test images that logits `(N, classes)` get right."""
        return (logits.argmax(1) == self.dataset.y_test).float().mean().item()

    def _check_finite(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss was {loss.item()} after {self._step} steps; "
                "a lower learning rate may help"
            )

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        self._watch(event)


T = TypeVar("T", bound=Event)


def _of_kind(events: Iterable[Event], kind: type[T]) -> tuple[T, ...]:
    return tuple(event for event in events if isinstance(event, kind))


def _largest(values: Tensor) -> float:
    return values.abs().max().item()


def _milliseconds(networks: Mapping[str, nn.Module], batch: Tensor) -> dict[str, float]:
    """Each network's median time for one batch; they take turns, so that noise hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    for network in networks.values():
        network.eval()
    with torch.no_grad():
        for _ in range(_TIMED_ROUNDS):
            for name, network in networks.items():
                started = time.perf_counter()
                network(batch)
                seconds[name].append(time.perf_counter() - started)
    return {name: 1000 * statistics.median(taken) for name, taken in seconds.items()}


def _block_map(model: nn.Module, layers: Iterable[splitgrow.Layer]) -> BlockMap:
    """The blocks of the layer that has most of them; the first of several."""
    maps = (BlockMap(layer.name, reporting.block_map(model, layer.name)) for layer in layers)
    return max(maps, key=lambda blocks: len(blocks.blocks))
