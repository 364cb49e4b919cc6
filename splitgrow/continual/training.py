"""Training a task's network: epochs of batches, with optimizers that respect owners."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitgrow.continual.studies import Study
from splitgrow.continual.tasks import Batches

Loss = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
"""Takes a network, inputs and labels; gives the loss to minimise, and the logits."""


@dataclass(frozen=True)
class Training:
    """The settings of training.

    Attributes:
        epochs: Passes through a task's data.
        batch_size: Examples in a batch.
        lr: The learning rate of stochastic gradient descent.
        momentum: Its momentum, Nesterov's.
        weight_decay: For weights and heads, not for norms and biases. It moves only the task's
            trained weights: never those of other tasks.
        schedule: The course of learning rates: along half a cosine to zero, or constant.
        score_lr: The learning rate of Adam for the scores that pick weights.
        clip: The norm above which gradients are scaled down; None for no bound.

    Example:
        >>> from splitgrow.continual import Training
        >>> training = Training(epochs=20, lr=0.05)
        >>> training.share(50, steps=100)  # of the rate, in the middle of the cosine
        0.5
    """

    epochs: int = 10
    batch_size: int = 64
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 4e-5
    schedule: Literal["cosine", "constant"] = "cosine"
    score_lr: float = 5e-4
    clip: float | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an int of at least 1, got {value!r}")
        for name in ("lr", "momentum", "weight_decay", "score_lr"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
        if self.schedule not in {"cosine", "constant"}:
            raise ValueError(f'schedule must be "cosine" or "constant", got {self.schedule!r}')
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be above 0, got {self.clip!r}")

    def share(self, step: int, steps: int | None) -> float:
        """The factor on the learning rate at a step.

        Args:
            step: The number of steps that are done.
            steps: The number of steps in all; None if that is not known.
        """
        if self.schedule == "constant" or not steps:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))

    def optimizers(self, network: nn.Module) -> list[torch.optim.Optimizer]:
        """New optimizers for a network: one for weights, and one for scores if there are any."""
        scores: list[nn.Parameter] = list(network.scores) if isinstance(network, Study) else []
        known = {id(score) for score in scores}
        rest = [p for p in network.parameters() if p.requires_grad and id(p) not in known]
        groups = [
            {"params": [p for p in rest if p.dim() > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in rest if p.dim() <= 1], "weight_decay": 0.0},
        ]
        found: list[torch.optim.Optimizer] = []
        if rest:
            nesterov = self.momentum > 0
            given = [group for group in groups if group["params"]]
            found.append(
                torch.optim.SGD(given, lr=self.lr, momentum=self.momentum, nesterov=nesterov)
            )
        if scores:
            found.append(torch.optim.Adam(scores, lr=self.score_lr))
        return found


def cross_entropy(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The cross entropy, with the logits."""
    logits: Tensor = network(x)
    return F.cross_entropy(logits, y), logits


@dataclass(frozen=True)
class Epoch:
    """The result of one pass through the data.

    Attributes:
        loss: The mean loss of its batches.
        accuracy: The share of examples that were classified correctly, during training.
    """

    loss: float
    accuracy: float


class Fit:
    """A training of a network, which can be stopped after any epoch and continued.

    Args:
        network: The network to train.
        batches: The batches to train on.
        training: The settings.
        seed: The seed of the order of examples, and of the network's random numbers.
        epochs: The number of epochs; that of `training` by default.
        loss: The loss; cross entropy by default.
        after_step: Is called with the number of each step once it is done.
    """

    def __init__(
        self,
        network: nn.Module,
        batches: Batches,
        training: Training,
        *,
        seed: int,
        epochs: int | None = None,
        loss: Loss = cross_entropy,
        after_step: Callable[[int], None] | None = None,
    ) -> None:
        self.network, self.batches, self.training = network, batches, training
        self.epochs = training.epochs if epochs is None else epochs
        self.history: list[Epoch] = []
        self.step = 0
        self._loss, self._after_step = loss, after_step
        self._optimizers = training.optimizers(network)
        self._rates = [[g["lr"] for g in each.param_groups] for each in self._optimizers]
        self._generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)

    @property
    def epoch(self) -> int:
        """The number of epochs that are done."""
        return len(self.history)

    @property
    def steps(self) -> int:
        """The number of steps in all."""
        return self.epochs * len(self.batches)

    def run(self) -> Iterator[Epoch]:
        """Trains; yields the result of each epoch.

        Raises:
            FloatingPointError: If the training has diverged.
            ValueError: If the data have no batch.
        """
        while self.epoch < self.epochs:
            self.history.append(self._pass())
            yield self.history[-1]

    def _pass(self) -> Epoch:
        self.network.train()
        # Numbers stay on the network's device until the end: reading one waits for the device.
        losses: list[Tensor] = []
        right: list[Tensor] = []
        counts: list[int] = []
        for x, y in self.batches.drawn(self._generator):
            self._set_rates()
            loss, logits = self._loss(self.network, x, y)
            for optimizer in self._optimizers:
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if self.training.clip is not None:
                nn.utils.clip_grad_norm_(self.network.parameters(), self.training.clip)
            for optimizer in self._optimizers:
                optimizer.step()
            self.step += 1
            if self._after_step is not None:
                self._after_step(self.step)
            losses.append(loss.detach())
            right.append((logits.detach().argmax(1) == y).sum())
            counts.append(len(y))
        if not counts:
            raise ValueError("the training data have no batch")
        total = sum(each * n for each, n in zip(torch.stack(losses).tolist(), counts, strict=True))
        if not math.isfinite(total):
            raise FloatingPointError(
                f"the loss was {total} after {self.step} steps; a lower learning rate may help"
            )
        return Epoch(total / sum(counts), int(torch.stack(right).sum()) / sum(counts))

    def _set_rates(self) -> None:
        """Sets the learning rates of the coming step."""
        if self.training.schedule == "constant" or not self.batches.known:
            return
        share = self.training.share(self.step, self.steps)
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * share

    def state(self) -> dict[str, Any]:
        """The state to continue from, apart from the network: plain data and tensors."""
        return {
            "history": [[epoch.loss, epoch.accuracy] for epoch in self.history],
            "step": self.step,
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "order": self._generator.get_state(),
            "random": torch.get_rng_state(),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from a result of `state`."""
        self.history = [Epoch(*pair) for pair in state["history"]]
        self.step = state["step"]
        for optimizer, own in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(own)
        self._generator.set_state(state["order"])
        torch.set_rng_state(state["random"])


@torch.no_grad()
def accuracy(network: nn.Module, batches: Batches) -> float:
    """The share of examples that a network classifies correctly, in evaluation mode."""
    training = network.training
    network.eval()
    try:
        right, seen = [], 0
        for x, y in batches:
            right.append((network(x).argmax(1) == y).sum())
            seen += len(y)
    finally:
        network.train(training)
    return int(torch.stack(right).sum()) / seen if right else 0.0
