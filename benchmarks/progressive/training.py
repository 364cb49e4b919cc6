"""Training an autoencoder level by level, or at the highest resolution from the start."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import splitgrow

WAYS = ("from the start", "grown", "grown, old adapters held")


@dataclass(frozen=True)
class Settings:
    """What is trained and for how long.

    Attributes:
        widths: The channels at each resolution, from coarse to fine.
        latent: The channels of the code, at the lowest resolution.
        start: The lowest resolution.
        shares: The shares of the multiply-adds at each resolution, of the network that grows.
        fade: The share of these during which the new stage fades in.
        batch: Images a step.
        rate: Adam's learning rate, which falls to zero along a line in the last fifth.
        budget: Multiply-adds, in thousands of millions.
        images: Training images.
        tested: Test images.
    """

    widths: tuple[int, ...] = (64, 32, 16, 8)
    latent: int = 16
    start: int = 4
    shares: tuple[float, ...] = (0.05, 0.1, 0.2, 0.65)
    fade: float = 0.5
    batch: int = 32
    rate: float = 2e-3
    budget: float = 250.0
    images: int = 20_000
    tested: int = 2_000

    @property
    def size(self) -> int:
        """The highest resolution."""
        return self.start * 2 ** (len(self.widths) - 1)


@dataclass(frozen=True)
class Phase:
    """A stretch of training at one resolution."""

    level: int
    fading: bool
    share: float


@dataclass(frozen=True)
class Run:
    """What one training gave.

    Attributes:
        way: How it was trained.
        seed: Of the weights and of the order of images.
        error: The mean squared error on the test images, pixels from 0 to 1.
        steps: The steps at each resolution.
        seconds: The time that training took.
        curve: Share of the budget, and error on some test images, at the highest resolution.
    """

    way: str
    seed: int
    error: float
    steps: tuple[int, ...]
    seconds: float
    curve: tuple[tuple[float, float], ...]


def phases(way: str, settings: Settings) -> Iterator[Phase]:
    """What comes one after the other."""
    top = len(settings.widths) - 1
    if way == WAYS[0]:
        yield Phase(top, fading=False, share=1.0)
        return
    for level, share in enumerate(settings.shares):
        fade = settings.fade if level else 0.0
        if fade:
            yield Phase(level, fading=True, share=share * fade)
        yield Phase(level, fading=False, share=share * (1 - fade))


def multiply_adds(model: Any, x: Tensor) -> float:
    """Those of one step, in thousands of millions; the model is as before."""
    with FlopCounterMode(display=False) as counter:
        F.mse_loss(model(x), x).backward()
    model.zero_grad()
    return counter.get_total_flops() / 2e9


def at(images: Tensor, size: int) -> Tensor:
    """Images at a lower resolution: means of squares of pixels."""
    return F.avg_pool2d(images, images.shape[-1] // size)


@torch.no_grad()
def reconstructions(model: Any, images: Tensor) -> Tensor:
    """What becomes of images, at their own resolution whatever the model's is."""
    model.eval()
    parts = [model(at(part, model.resolution)) for part in images.split(250)]
    model.train()
    return F.interpolate(torch.cat(parts), size=images.shape[-1], mode="nearest")


def error_on(model: Any, images: Tensor) -> float:
    """The mean squared error, pixels from 0 to 1."""
    return F.mse_loss(reconstructions(model, images), images).item() / 4


class Training:
    """One network on its way: its optimizer, and what was spent and seen so far."""

    def __init__(self, way: str, seed: int, data: tuple[Tensor, Tensor], settings: Settings):
        torch.manual_seed(seed)
        self.way, self.seed, self.settings = way, seed, settings
        self.images, self.tested = data
        self.model = splitgrow.ProgressiveAutoencoder.of_widths(
            settings.widths, image_channels=3, start=settings.start, latent=settings.latent
        )
        if way == WAYS[0]:
            for _ in settings.widths[1:]:
                self.model.grow(fade=False)
        self._order = torch.Generator().manual_seed(seed)
        self._optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.rate)
        self._steps = [0] * len(settings.widths)
        self.spent, self._seconds = 0.0, 0.0
        self.curve: list[tuple[float, float]] = []

    def run(self, watch: Callable[[Training], None]) -> Run:
        """Trains through all phases; `watch` is called now and then."""
        for phase in phases(self.way, self.settings):
            if phase.level > self.model.level:
                self.model.grow(optimizer=self._optimizer, hold_old=self.way == WAYS[2])
            self._train(phase, watch)
            self.model.finish(optimizer=self._optimizer)
        error = error_on(self.model, self.tested)
        steps, seconds = tuple(self._steps), round(self._seconds, 1)
        return Run(self.way, self.seed, error, steps, seconds, tuple(self.curve))

    def _train(self, phase: Phase, watch: Callable[[Training], None]) -> None:
        batch = at(self.images[: self.settings.batch], self.model.resolution)
        cost = multiply_adds(self.model, batch)
        count = max(1, round(phase.share * self.settings.budget / cost))
        schedule = splitgrow.FadeSchedule(self.model, count) if phase.fading else None
        every = max(1, count // max(1, round(12 * phase.share)))
        for index in range(count):
            started = time.perf_counter()
            self._step()
            if schedule is not None:
                schedule.step()
            self._seconds += time.perf_counter() - started
            self.spent += cost
            if index % every == every - 1:
                share = round(self.spent / self.settings.budget, 4)
                self.curve.append((share, error_on(self.model, self.tested[:500])))
            if index % 10 == 9:
                watch(self)
        self._steps[phase.level] += count

    def _step(self) -> None:
        left = max(0.0, 1 - self.spent / self.settings.budget)
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.rate * min(1.0, 5 * left)
        chosen = torch.randint(len(self.images), (self.settings.batch,), generator=self._order)
        x = at(self.images[chosen], self.model.resolution)
        self._optimizer.zero_grad()
        F.mse_loss(self.model(x), x).backward()
        self._optimizer.step()
