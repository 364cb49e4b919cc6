"""The records of networks that are compared at equal arithmetic: events, and the finished run.

An arm is one of the networks: "grown", "large" or "small".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from splitgrow.cli.grow_settings import GrowSettings
from splitgrow.grower.schedule import Schedule
from splitgrow.growth.edits import Edit

GROWN, LARGE, SMALL = "grown", "large", "small"


@dataclass(frozen=True)
class ArmPhase:
    """An arm begins to train, for so many multiply-adds."""

    arm: str
    macs: int


@dataclass(frozen=True)
class ArmEnd:
    """An arm has trained."""

    arm: str


@dataclass(frozen=True)
class ArmPoint:
    """An arm after `step` training steps.

    Attributes:
        arm: Its name.
        step: The number of steps.
        macs: The multiply-adds of its training.
        seconds: The processor time of its training, of all threads together.
    """

    arm: str
    step: int
    macs: int
    seconds: float


@dataclass(frozen=True)
class ArmStep(ArmPoint):
    """One training step; `accuracy` is that of its batch."""

    epoch: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class ArmEvaluation(ArmPoint):
    """The whole test set."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class ArmGrowth(ArmPoint):
    """The growing arm has grown.

    Attributes:
        edit: The edit.
        growing: The part of the seconds that this growth took.
        parameters: The numbers of parameters before and after it.
        macs_an_image: The multiply-adds of a forward pass for one image after it.
    """

    edit: Edit
    growing: float
    parameters: tuple[int, int]
    macs_an_image: int


@dataclass(frozen=True)
class ArmOutcome:
    """An arm in the end.

    Attributes:
        arm: Its name.
        accuracy: The share of the test images that it gets right.
        loss: The cross entropy of the test images.
        macs: The multiply-adds of its training.
        seconds: The processor time of its training.
        steps: The number of training steps.
        parameters: The number of its parameters.
        macs_an_image: The multiply-adds of a forward pass for one image.
        widths: The width of each layer that can grow, or grows along.
    """

    arm: str
    accuracy: float
    loss: float
    macs: int
    seconds: float
    steps: int
    parameters: int
    macs_an_image: int
    widths: Mapping[str, int] = field(hash=False)


@dataclass(frozen=True)
class Lead:
    """By how much the grown arm's test accuracy exceeds that of another.

    Attributes:
        other: The other arm.
        points: The difference in percentage points; negative if the other is ahead.
        standard_error: Its standard error over test images, in points: both arms see the same ones.
    """

    other: str
    points: float
    standard_error: float


@dataclass(frozen=True, kw_only=True)
class GrowResult:
    """Everything a finished comparison has to say.

    Attributes:
        dataset: The name of the data.
        images: The training and test images.
        held_out: The training images that were set apart to decide by.
        settings: The chosen settings.
        plan: The plan of the growths, from before the training.
        macs: The multiply-adds that each arm was to train for.
        steps: All training steps.
        evaluations: All looks at the test images.
        growths: The growths.
        arms: The arms in the end: grown, large, small.
        leads: The grown arm's lead over each of the others.
        redrawn: Parameters that no `reset_parameters` initialises.
        seconds: The time of the whole run on the clock.
    """

    dataset: str
    images: tuple[int, int]
    held_out: int
    settings: GrowSettings
    plan: Schedule
    macs: int
    steps: tuple[ArmStep, ...]
    evaluations: tuple[ArmEvaluation, ...]
    growths: tuple[ArmGrowth, ...]
    arms: tuple[ArmOutcome, ...]
    leads: tuple[Lead, ...]
    redrawn: tuple[str, ...]
    seconds: float

    def arm(self, name: str) -> ArmOutcome:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.arm == name)
