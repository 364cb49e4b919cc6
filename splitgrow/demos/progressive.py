"""The progressive demo: an autoencoder whose images grow while it trains. It prints nothing."""

from __future__ import annotations

import base64
import copy
import math
import time
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

import splitgrow
from splitgrow.cli.settings import DemoSettings
from splitgrow.demos.datasets import Dataset
from splitgrow.demos.results import (
    FadeFusion,
    Level,
    LevelEvaluation,
    LevelGrowth,
    LevelPhase,
    LevelStep,
    ProgressiveResult,
    Tiles,
)
from splitgrow.demos.training import Loop, Watch, evaluated, largest, size_of

START = 4  # the resolution of the first level
_MOST_LEVELS = 3  # of growth: up to 32x32
_WIDEST = 64
_SHOWN = 10  # images in the report


def run(dataset: Dataset, settings: DemoSettings, watch: Watch) -> ProgressiveResult:
    """Trains at 4x4 pixels, and then again and again doubles the resolution, fades and trains.

    `watch` is called with every event as it happens. The same seed gives the same run, and the
    state of torch's own random numbers is left as it was.

    Raises:
        FloatingPointError: if the training diverges.
    """
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        widths = widths_for(levels_for(dataset.size), settings.width)
        trainer = _Trainer(dataset, widths, settings, watch)
        trainer.train()
        levels = [trainer.show()]
        for _ in widths[1:]:
            trainer.grow()
            trainer.fade_in()
            both = copy.deepcopy(trainer.model)
            trainer.model.finish(optimizer=trainer.optimizer)
            fusion = trainer.fuse(both)
            trainer.train()
            levels.append(trainer.show())
    return ProgressiveResult(
        dataset=dataset.name,
        images=(len(dataset.x_train), len(dataset.x_test)),
        settings=settings,
        steps=trainer.of_kind(LevelStep),
        evaluations=trainer.of_kind(LevelEvaluation),
        growths=trainer.of_kind(LevelGrowth),
        levels=tuple(levels),
        latent=trainer.latent,
        fusion=fusion,
        seconds=time.perf_counter() - started,
    )


def levels_for(size: tuple[int, int]) -> int:
    """How often an autoencoder of images of that size grows: to 8x8, 16x16 or 32x32.

    >>> [levels_for((side, side)) for side in (4, 8, 12, 28, 32, 224)]
    [1, 1, 2, 3, 3, 3]
    """
    return min(_MOST_LEVELS, max(1, round(math.log2(min(size) / START))))


def widths_for(levels: int, width: int) -> list[int]:
    """The channels at each resolution, from coarse to fine, where the first has four pixels a side.

    >>> widths_for(1, 4), widths_for(3, 8)
    ([16, 8], [64, 64, 32, 16])
    """
    return [min(max(_WIDEST, width), width * 2 ** (levels - at + 1)) for at in range(levels + 1)]


def pyramid(images: Tensor, levels: int) -> list[Tensor]:
    """Images `(N, C, H, W)` at every resolution, from 4x4 on; each is the half of the next."""
    side = START * 2**levels
    if images.shape[-2:] != (side, side):
        images = functional.interpolate(
            images, (side, side), mode="bilinear", align_corners=False, antialias=True
        )
    sizes = [images]
    for _ in range(levels):
        sizes.append(functional.avg_pool2d(sizes[-1], 2))
    return sizes[::-1]


def enlarged(images: Tensor, side: int) -> Tensor:
    """Images with every pixel repeated until they have that many a side."""
    return functional.interpolate(images, (side, side), mode="nearest")


class _Trainer(Loop[DemoSettings]):
    """The autoencoder, and the images at every resolution."""

    model: splitgrow.ProgressiveAutoencoder
    largest_gradient = 0.5  # there are no norms to keep the wider of these networks stable

    def __init__(
        self, dataset: Dataset, widths: Sequence[int], settings: DemoSettings, watch: Watch
    ) -> None:
        self.latent = max(2, widths[0] // 8)
        model = splitgrow.ProgressiveAutoencoder.of_widths(
            widths, image_channels=dataset.channels, start=START, latent=self.latent
        )
        super().__init__(model, len(dataset.x_train), settings, watch)
        levels = len(widths) - 1
        self._widths = widths
        self._train, self._test = (pyramid(x, levels) for x in (dataset.x_train, dataset.x_test))
        self._fade: splitgrow.FadeSchedule | None = None

    def train(self) -> None:
        """Trains for the epochs of one phase."""
        level, resolution = self.model.level, self.model.resolution
        self.tell(LevelPhase(level, resolution, self._fade is not None, self.steps))
        for _ in self.epochs():
            error, full = self._errors()
            self.tell(LevelEvaluation(self.step, level, self.model.alpha, error, full))

    def fade_in(self) -> None:
        """Trains for the epochs of one phase, in which the newest level takes over."""
        self._fade = splitgrow.FadeSchedule(self.model, steps=self.steps)
        self.train()
        self._fade = None

    def loss(self, indices: Tensor) -> tuple[Tensor, None]:
        """The mean squared error of reconstructions at the resolution of today."""
        images = self._train[self.model.level][indices]
        return functional.mse_loss(self.model(images), images), None

    def stepped(self, epoch: int, loss: float, seen: None) -> None:  # noqa: ARG002
        """Takes the fade a step on, and tells."""
        alpha = self._fade.alpha if self._fade else 1.0
        if self._fade:
            self._fade.step()
        self.tell(LevelStep(self.step, self.model.level, epoch, alpha, loss))

    def grow(self) -> None:
        """Adds a level, and compares the outputs with those before."""
        before = self._reconstructed()
        new = self.model.grow(optimizer=self.optimizer, hold_old=True)
        after = self._reconstructed()
        expected = enlarged(before, self.model.resolution)
        self.tell(
            LevelGrowth(
                self.step,
                self.model.level,
                self.model.resolution,
                parameters=sum(parameter.numel() for parameter in new),
                exact=torch.equal(after, expected),
                disturbance=largest(after - expected),
            )
        )

    def fuse(self, both: splitgrow.ProgressiveAutoencoder) -> FadeFusion:
        """Fuses a network of today whose fade is over, but which still has `both` paths."""
        old = f"adapters.{both.level - 1}."
        images = self._test[both.level]
        fused = splitgrow.fuse(splitgrow.growable(both, images[:2]))
        ours, theirs = evaluated(fused, images), self._reconstructed()
        return FadeFusion(
            both_paths=size_of(both),
            fused=size_of(fused),
            old_path_gone=not any(old in name for name in fused.state_dict()),
            largest_difference=largest(ours - theirs),
            largest_pixel=largest(theirs),
        )

    def show(self) -> Level:
        """The level of today, at its end."""
        level = self.model.level
        error, full = self._errors()
        originals = self._test[level][:_SHOWN]
        return Level(
            level,
            self.model.resolution,
            self._widths[level],
            size_of(self.model),
            error,
            full,
            *_tiles(originals, self._reconstructed()[:_SHOWN]),
        )

    def _reconstructed(self) -> Tensor:
        return evaluated(self.model, self._test[self.model.level])

    def _errors(self) -> tuple[float, float]:
        """The mean squared error of the test images at today's resolution, and at the full one.

        Raises:
            FloatingPointError: if the training has diverged.
        """
        made, full = self._reconstructed(), self._test[-1]
        error = functional.mse_loss(made, self._test[self.model.level])
        self.check_finite(error)
        large = enlarged(made, full.shape[-1])
        return error.item(), functional.mse_loss(large, full).item()


def _tiles(originals: Tensor, reconstructions: Tensor) -> tuple[Tiles, Tiles]:
    """Both as bytes, on the scale from the originals' darkest to their brightest pixel."""
    low, high = originals.amin(), originals.amax()
    scale = 255 / (high - low).clamp(min=1e-6)
    made = []
    for images in (originals, reconstructions):
        count, channels, side, _ = images.shape
        values = ((images - low) * scale).clamp(0, 255).round().to(torch.uint8)
        pixels = base64.b64encode(values.numpy().tobytes()).decode("ascii")
        made.append(Tiles(count, channels, side, pixels))
    return made[0], made[1]
