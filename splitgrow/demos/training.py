"""Trains a network in phases, with one optimizer and one schedule that go on through growth."""

from __future__ import annotations

import math
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import splitgrow
from splitgrow.cli.settings import DemoSettings
from splitgrow.demos.augmentation import Augmentation
from splitgrow.demos.datasets import Dataset
from splitgrow.demos.results import (
    DemoEvent,
    Evaluation,
    Measurement,
    Phase,
    Recovery,
    TrainingStep,
)

_EVALUATION_BATCH = 512
_TIMED_ROUNDS = 15

Watch = Callable[[DemoEvent], None]
_T = TypeVar("_T", bound=DemoEvent)


def one_cycle(step: int, steps: int) -> float:
    """The share of the peak learning rate at a step: linearly up, then down along a cosine.

    Reference: Smith and Topin, Super-Convergence (the shape of the cycle).
    """
    rise = max(1, round(0.3 * steps))
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / (steps - rise)))


class TrainingSettings(Protocol):
    """How a network trains, by the step."""

    @property
    def epochs(self) -> int:
        """Passes through the data, in a phase."""

    @property
    def batch_size(self) -> int:
        """Images in a training step."""

    @property
    def learning_rate(self) -> float:
        """At the peak of the schedule."""


_Settings = TypeVar("_Settings", bound=TrainingSettings)


class Loop(ABC, Generic[_Settings]):
    """A model, its optimizer and schedule, and the events so far."""

    largest_gradient: float | None = None  # the norm to which those of a step are clipped
    order: torch.Generator | None = None  # draws the order of the images; None for torch's own

    def __init__(self, model: nn.Module, images: int, settings: _Settings, watch: Watch) -> None:
        self.model, self.settings = model, settings
        self.events: list[DemoEvent] = []
        self.step = 0
        self._images, self._watch = images, watch
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate)
        self.steps = settings.epochs * -(-images // settings.batch_size)  # of one phase
        # One schedule for the whole run, which goes on through every growth. It rises anew in each
        # phase: Adam's first steps on new parameters are as long as the rate, for any
        # gradients, so a growth at the full rate would make the loss jump.
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self.rate)

    @abstractmethod
    def loss(self, indices: Tensor) -> tuple[Tensor, Any]:
        """The loss on some training images, and the value that `stepped` wants besides."""

    @abstractmethod
    def stepped(self, epoch: int, loss: float, seen: Any) -> None:
        """Tells of the step that was taken."""

    def rate(self, step: int) -> float:
        """The share of the peak learning rate at a step."""
        return one_cycle(step % self.steps, self.steps)

    def epochs(self) -> Iterator[int]:
        """Trains for the epochs of one phase; yields at the end of each.

        Raises:
            FloatingPointError: if the training diverges.
        """
        for epoch in range(1, self.settings.epochs + 1):
            self.model.train()
            for indices in self.batches():
                self.stepped(epoch, *self.update(indices))
            yield epoch

    def batches(self) -> Sequence[Tensor]:
        """The images of an epoch, as the indices of each batch, in an order that is drawn."""
        order = torch.randperm(self._images, generator=self.order)
        return torch.split(order, self.settings.batch_size)

    def update(self, indices: Tensor) -> tuple[float, Any]:
        """Takes a training step on a batch; returns its loss, and the value for `stepped`.

        Raises:
            FloatingPointError: if the training diverges.
        """
        loss, seen = self.loss(indices)
        self.check_finite(loss)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # so in torch's stubs
        if self.largest_gradient is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.largest_gradient)
        self.optimizer.step()
        self._schedule.step()
        self.step += 1
        return loss.item(), seen

    def check_finite(self, loss: Tensor) -> None:
        """Makes sure that the training has not diverged.

        Raises:
            FloatingPointError: if it has.
        """
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"the loss was {loss.item()} after {self.step} steps; "
                "a lower learning rate may help"
            )

    def tell(self, event: DemoEvent) -> None:
        """Notes an event, and passes it on."""
        self.events.append(event)
        self._watch(event)

    def of_kind(self, kind: type[_T]) -> tuple[_T, ...]:
        """The events of a kind so far."""
        return tuple(event for event in self.events if isinstance(event, kind))


class Classifier(Loop[_Settings]):
    """Trains a classifier on labelled images, and judges it by those of the test."""

    augment: Augmentation | None = None  # changes the training images

    def __init__(
        self, model: nn.Module, dataset: Dataset, settings: _Settings, watch: Watch
    ) -> None:
        super().__init__(model, len(dataset.x_train), settings, watch)
        self.dataset = dataset

    def loss(self, indices: Tensor) -> tuple[Tensor, float]:
        """The cross entropy, and the accuracy of the batch."""
        labels, images = self.dataset.y_train[indices], self.dataset.x_train[indices]
        logits = logits_of(self.model(self.augment(images) if self.augment else images))
        accuracy = (logits.argmax(1) == labels).float().mean().item()
        return functional.cross_entropy(logits, labels), accuracy

    def judge(self, logits: Tensor) -> tuple[float, float]:
        """Loss and accuracy of test logits `(N, classes)`.

        Raises:
            FloatingPointError: if the training has diverged.
        """
        loss = functional.cross_entropy(logits, self.dataset.y_test)
        self.check_finite(loss)
        return loss.item(), self.accuracy(logits)

    def logits(self, network: nn.Module) -> Tensor:
        """The logits of all test images, in eval mode."""
        return evaluated(network, self.dataset.x_test)

    def accuracy(self, logits: Tensor) -> float:
        """The share of test images that logits `(N, classes)` get right."""
        return (logits.argmax(1) == self.dataset.y_test).float().mean().item()


class Trainer(Classifier[DemoSettings]):
    """Trains a growable classifier; `handle` has the model's own new methods, known to mypy."""

    def __init__(
        self, net: nn.Module, dataset: Dataset, settings: DemoSettings, watch: Watch
    ) -> None:
        super().__init__(net, dataset, settings, watch)
        self.model = splitgrow.growable(net, dataset.x_test[:2])
        self.handle = splitgrow.handle(self.model)

    def train(self) -> Tensor:
        """Trains the open generation for the epochs of one phase; the test logits at its end."""
        self.tell(Phase(self.handle.generation, self.steps))
        for _ in self.epochs():
            logits = self.logits(self.model)
            loss, accuracy = self.judge(logits)
            self.tell(Evaluation(self.step, self.handle.generation, loss, accuracy))
        return logits

    def stepped(self, epoch: int, loss: float, seen: float) -> None:
        """Tells of the step with its loss and accuracy."""
        self.tell(TrainingStep(self.step, self.handle.generation, epoch, loss, seen))

    def recover(self, generation: int, recorded: Tensor) -> Recovery:
        """Compares a closed generation's test logits with those `recorded` when it was closed."""
        with self.handle.at(generation):
            recovered = self.logits(self.model)
        return Recovery(
            generation,
            accuracy=self.accuracy(recovered),
            exact=torch.equal(recovered, recorded),
            largest_difference=largest(recovered - recorded),
        )

    def measure(
        self, networks: Mapping[str, nn.Module], outputs: Mapping[str, Tensor]
    ) -> tuple[Measurement, ...]:
        """Accuracy, size and speed of each of the networks, whose test logits are known."""
        batch = self.dataset.x_test[: self.settings.batch_size]
        milliseconds = _milliseconds(networks, batch)
        return tuple(
            Measurement(
                name,
                accuracy=self.accuracy(outputs[name]),
                parameters=size_of(network),
                milliseconds=milliseconds[name],
                macs=_macs(network, batch[:1]),
            )
            for name, network in networks.items()
        )


def logits_of(output: Any) -> Tensor:
    """The logits in the output of a classifier: the output itself, or as `logits` in it."""
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def evaluated(network: nn.Module, images: Tensor) -> Tensor:
    """The outputs of a network for all images, in eval mode."""
    network.eval()
    with torch.no_grad():
        return torch.cat([logits_of(network(x)) for x in torch.split(images, _EVALUATION_BATCH)])


def largest(values: Tensor) -> float:
    """The largest absolute value."""
    return values.abs().max().item()


def size_of(network: nn.Module) -> int:
    """The number of a network's parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


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


def _macs(network: nn.Module, image: Tensor) -> int:
    """The multiply-adds for one image."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network.eval()(image)
    return int(counter.get_total_flops()) // 2


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
