"""Trains a network for an amount of arithmetic, growing it by a policy if it has one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from splitgrow.cli.grow_settings import GrowSettings
from splitgrow.demos.arm_results import (
    ArmEnd,
    ArmEvaluation,
    ArmGrowth,
    ArmOutcome,
    ArmPhase,
    ArmStep,
)
from splitgrow.demos.augmentation import Augmentation
from splitgrow.demos.datasets import Dataset
from splitgrow.demos.training import Classifier, Watch, evaluated, one_cycle, size_of
from splitgrow.grower import Grower
from splitgrow.grower.settings import PASSES_OF_STEP

VALIDATION_LOSS = "validation loss"
"""The metric that a policy may wait for."""

_LOOKS = (6, 24)  # at the test images: at least, and at most


@dataclass(frozen=True, eq=False)  # tensors have no single truth value to compare by
class ArmCourse:
    """The common course of all arms.

    Attributes:
        dataset: The images that they learn and are judged by.
        held_out: Images with labels to decide by, or None.
        settings: The chosen settings.
        macs: The multiply-adds of the training.
    """

    dataset: Dataset
    held_out: tuple[Tensor, Tensor] | None
    settings: GrowSettings
    macs: int

    @property
    def looks(self) -> int:
        """How often each arm looks at the test images: seldom where these outweigh the training."""
        fewest, most = _LOOKS
        training = PASSES_OF_STEP * self.settings.epochs * len(self.dataset.x_train)
        return min(most, max(fewest, training // len(self.dataset.x_test)))


class Arm(Classifier[GrowSettings]):
    """A network that trains for an amount of arithmetic.

    A step costs three forward passes for each image. The learning rate is one cycle over the whole
    training, by the share of the arithmetic that is spent.

    Args:
        name: The arm's name.
        network: The network.
        course: The common course.
        cost: The multiply-adds of a forward pass for one image.
        watch: Receives the events.
    """

    def __init__(
        self, name: str, network: nn.Module, course: ArmCourse, cost: int, watch: Watch
    ) -> None:
        self.name, self.course, self.cost = name, course, cost
        self.macs, self.seconds = 0, 0.0
        self.grower: Grower | None = None
        self.order = torch.Generator().manual_seed(course.settings.seed)  # the same for all arms
        super().__init__(network, course.dataset, course.settings, watch)
        # The same changes in the same step for all arms, however many numbers a growth draws.
        draws = torch.Generator().manual_seed(course.settings.seed)
        self.augment = Augmentation.of(course.settings.augment, course.dataset.size, draws)

    @property
    def finished(self) -> bool:
        """Whether another step would lead further away from the planned arithmetic."""
        return self.step > 0 and self.macs + self._half_a_step >= self.course.macs

    @property
    def _half_a_step(self) -> int:
        return PASSES_OF_STEP * self.cost * self.settings.batch_size // 2

    def rate(self, step: int) -> float:
        """The share of the peak learning rate, by the middle of the next step."""
        del step
        middle = min(self.macs + self._half_a_step, self.course.macs - 1)
        return one_cycle(middle, self.course.macs)

    def train(self) -> None:
        """Trains until the arithmetic is spent.

        Raises:
            FloatingPointError: If the training diverges.
        """
        self.tell(ArmPhase(self.name, self.course.macs))
        epoch, looks = 0, 0
        while not self.finished:
            epoch += 1
            batches = self.batches()
            for index, indices in enumerate(batches, 1):
                self.model.train()
                loss, accuracy = self.update(indices)
                self.stepped(epoch, loss, accuracy)
                self._grow(len(indices), ends_epoch=index == len(batches))
                if self.finished or self.macs * self.course.looks >= (looks + 1) * self.course.macs:
                    looks = self.macs * self.course.looks // self.course.macs
                    self._evaluate()
                if self.finished:
                    break
        self.tell(ArmEnd(self.name))

    def batches(self) -> Sequence[Tensor]:
        """The batches of an epoch, but no last one of a single image, which norms cannot take."""
        batches = super().batches()
        return batches[:-1] if len(batches) > 1 and len(batches[-1]) == 1 else batches

    def update(self, indices: Tensor) -> tuple[float, float]:
        """Takes a step, and counts its arithmetic and its time."""
        self.macs += PASSES_OF_STEP * self.cost * len(indices)
        began = time.process_time()
        done: tuple[float, float] = super().update(indices)
        self.seconds += time.process_time() - began
        return done

    def stepped(self, epoch: int, loss: float, seen: float) -> None:
        """Tells of the step with its loss and accuracy."""
        self.tell(ArmStep(self.name, self.step, self.macs, self.seconds, epoch, loss, seen))

    def outcome(self, widths: Iterable[tuple[str, int]]) -> tuple[ArmOutcome, Tensor]:
        """The arm as it is, and for each test image whether it gets it right."""
        logits = self.logits(self.model)
        loss, accuracy = self.judge(logits)
        outcome = ArmOutcome(
            arm=self.name,
            accuracy=accuracy,
            loss=loss,
            macs=self.macs,
            seconds=self.seconds,
            steps=self.step,
            parameters=size_of(self.model),
            macs_an_image=self.cost,
            widths=dict(widths),
        )
        return outcome, logits.argmax(1) == self.dataset.y_test

    def _grow(self, images: int, *, ends_epoch: bool) -> None:
        """Tells the policy of a step; the time of its work counts as the arm's."""
        if self.grower is None:
            return
        metrics = self._held_out_loss() if ends_epoch and not self.grower.done else None
        before, began = size_of(self.model), time.process_time()
        edit = self.grower.step(metrics, samples=images)
        taken = time.process_time() - began
        self.seconds += taken
        self.cost = self.grower.macs
        if edit is not None:
            sizes = (before, size_of(self.model))
            at = (self.name, self.step, self.macs, self.seconds)
            self.tell(ArmGrowth(*at, edit, taken, sizes, self.cost))

    def _held_out_loss(self) -> dict[str, float] | None:
        if self.course.held_out is None:
            return None
        images, labels = self.course.held_out
        return {
            VALIDATION_LOSS: functional.cross_entropy(evaluated(self.model, images), labels).item()
        }

    def _evaluate(self) -> None:
        loss, accuracy = self.judge(self.logits(self.model))
        at = (self.name, self.step, self.macs, self.seconds)
        self.tell(ArmEvaluation(*at, loss, accuracy))
