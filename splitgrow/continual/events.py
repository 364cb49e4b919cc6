"""What a learner tells its callbacks while it learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, Union


@dataclass(frozen=True)
class EpochDone:
    """A pass through a task's data.

    Attributes:
        task: The task's name.
        stage: What is being trained: "train", "prune to 0.3", ...
        epoch: The number of the epoch in this stage, from 1.
        epochs: How many the stage has.
        loss: The mean loss.
        accuracy: On the training data, on the way.
    """

    task: str
    stage: str
    epoch: int
    epochs: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Judged:
    """An accuracy that a decision is made by.

    Attributes:
        task: The task's name.
        stage: After which stage.
        accuracy: On the data that decisions are made on.
        goal: What it is compared with; None if with nothing.
    """

    task: str
    stage: str
    accuracy: float
    goal: float | None = None


@dataclass(frozen=True)
class Grown:
    """A growth of what tasks share.

    Attributes:
        task: The task that needed it.
        weights: How many weights are shared from here on.
        expansion: These, divided by those at first.
    """

    task: str
    weights: int
    expansion: float


@dataclass(frozen=True)
class TaskLearned:
    """A task that is learned.

    Attributes:
        task: Its name.
        accuracy: On the data that decisions are made on.
        seconds: How long it took.
        details: What the method has to say of it.
    """

    task: str
    accuracy: float
    seconds: float
    details: dict[str, Any] = field(default_factory=dict)


Event: TypeAlias = Union[EpochDone, Judged, Grown, TaskLearned]  # noqa: UP007
Callback: TypeAlias = Callable[[Event], None]


class TensorBoard:
    """A callback that writes curves for TensorBoard.

    Args:
        writer: A ``torch.utils.tensorboard.SummaryWriter``, or anything with its `add_scalar`.
    """

    def __init__(self, writer: Any) -> None:
        self._writer = writer
        self._steps: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        """Writes what an event tells."""
        task = event.task
        if isinstance(event, EpochDone):
            step = self._steps[task] = self._steps.get(task, 0) + 1
            self._writer.add_scalar(f"{task}/loss", event.loss, step)
            self._writer.add_scalar(f"{task}/training accuracy", event.accuracy, step)
        elif isinstance(event, Judged):
            self._writer.add_scalar(f"{task}/accuracy", event.accuracy, self._steps.get(task, 0))
        elif isinstance(event, Grown):
            self._writer.add_scalar("shared weights", event.weights, len(self._steps))
        else:
            self._writer.add_scalar("accuracy when learned", event.accuracy, len(self._steps))
