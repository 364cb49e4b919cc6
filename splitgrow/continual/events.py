"""The events that a learner sends to its callbacks while it learns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, Union


@dataclass(frozen=True)
class EpochDone:
    """A pass through a task's data.

    Attributes:
        task: The task's name.
        stage: The name of the training: "train", "prune to 0.3", ...
        epoch: The number of the epoch in this stage, from 1.
        epochs: The number of epochs of the stage.
        loss: The mean loss.
        accuracy: The accuracy on the training data, measured during training.
    """

    task: str
    stage: str
    epoch: int
    epochs: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Judged:
    """An accuracy that decides something.

    Attributes:
        task: The task's name.
        stage: The stage before it.
        accuracy: The accuracy on the data that decisions are made on.
        goal: The accuracy that it is compared with; None if there is none.
    """

    task: str
    stage: str
    accuracy: float
    goal: float | None = None


@dataclass(frozen=True)
class Grown:
    """A growth of the body.

    Attributes:
        task: The task that needed it.
        weights: The number of shared weights after it.
        expansion: That number, divided by the one at first.
    """

    task: str
    weights: int
    expansion: float


@dataclass(frozen=True)
class TaskLearned:
    """A learned task.

    Attributes:
        task: Its name.
        accuracy: The accuracy on the data that decisions are made on.
        seconds: The time to learn it.
        details: The method's own figures on it.
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
        """Writes the numbers of an event."""
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
