"""The progress bars of the demos: one for each phase of training."""

from __future__ import annotations

from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from splitgrow.demos import arm_tables, tables
from splitgrow.demos.arm_results import ArmEnd, ArmEvaluation, ArmGrowth, ArmPhase, ArmStep
from splitgrow.demos.results import (
    DemoEvent,
    Evaluation,
    Growth,
    LevelEvaluation,
    LevelGrowth,
    LevelPhase,
    LevelStep,
    Phase,
    TrainingStep,
)

_SMOOTHING = 0.1  # of loss and accuracy, over the steps
_EPOCHS = "epoch {task.fields[epoch]}/{task.fields[epochs]}"
_CLASSIFIED = (
    "loss {task.fields[loss]:.3f}",
    "train {task.fields[train]:.1%}",
    "test {task.fields[test]:.1%}",
)


class RunningMeans:
    """Numbers of the last steps, later ones counting more; the first step counts alone."""

    def __init__(self) -> None:
        self._means: tuple[float, ...] = ()

    def after(self, *values: float) -> tuple[float, ...]:
        """The means after a further step with these values."""
        before = self._means or values
        self._means = tuple(
            mean + _SMOOTHING * (value - mean) for mean, value in zip(before, values, strict=True)
        )
        return self._means


class Bars(Protocol):
    """Bars that follow a run."""

    progress: Progress

    def show(self, event: DemoEvent) -> None:
        """Updates the bars after an event."""


class ClassifierBars:
    """Generation, epoch, loss, and accuracy in training and test."""

    def __init__(self, console: Console, epochs: int) -> None:
        self.progress = _progress(
            console, "generation {task.fields[generation]}", _EPOCHS, *_CLASSIFIED
        )
        self._epochs = epochs
        self._task = TaskID(0)
        self._means = RunningMeans()
        self._loss = self._train = self._test = 0.0

    def show(self, event: DemoEvent) -> None:
        """Updates the bars after an event."""
        if isinstance(event, Phase):
            self._task = self.progress.add_task(
                "",
                total=event.steps,
                generation=event.generation,
                epochs=self._epochs,
                epoch=1,
                loss=self._loss,
                train=self._train,
                test=self._test,
            )
        elif isinstance(event, TrainingStep):
            self._loss, self._train = self._means.after(event.loss, event.accuracy)
            self.progress.update(
                self._task, advance=1, epoch=event.epoch, loss=self._loss, train=self._train
            )
        elif isinstance(event, Evaluation):
            self._test = event.accuracy
            self.progress.update(self._task, test=event.accuracy)
        elif isinstance(event, Growth):
            self.progress.console.print(tables.growth(event))


class LevelBars:
    """Resolution, the share of the new level, epoch, and the error in training and test."""

    def __init__(self, console: Console, epochs: int) -> None:
        self.progress = _progress(
            console,
            "{task.fields[side]}x{task.fields[side]}",
            _EPOCHS,
            "alpha {task.fields[alpha]:.2f}",
            "error: train {task.fields[train]:.3f}",
            "test {task.fields[test]:.3f}",
        )
        self._epochs = epochs
        self._task = TaskID(0)
        self._means = RunningMeans()
        self._train = self._test = 0.0

    def show(self, event: DemoEvent) -> None:
        """Updates the bars after an event."""
        if isinstance(event, LevelPhase):
            self._task = self.progress.add_task(
                "",
                total=event.steps,
                side=event.resolution,
                alpha=0.0 if event.fading else 1.0,
                epochs=self._epochs,
                epoch=1,
                train=self._train,
                test=self._test,
            )
        elif isinstance(event, LevelStep):
            (self._train,) = self._means.after(event.loss)
            self.progress.update(
                self._task, advance=1, epoch=event.epoch, alpha=event.alpha, train=self._train
            )
        elif isinstance(event, LevelEvaluation):
            self._test = event.error
            self.progress.update(self._task, test=event.error, alpha=event.alpha)
        elif isinstance(event, LevelGrowth):
            self.progress.console.print(tables.level_growth(event))


class ArmBars:
    """The arm, its epoch, loss, and accuracy in training and test; a bar is the arithmetic."""

    def __init__(self, console: Console) -> None:
        self.progress = _progress(
            console, "{task.fields[arm]:5}", "epoch {task.fields[epoch]}", *_CLASSIFIED
        )
        self._task = TaskID(0)
        self._means = RunningMeans()

    def show(self, event: DemoEvent) -> None:
        """Updates the bars after an event."""
        if isinstance(event, ArmPhase):
            self._means = RunningMeans()
            self._task = self.progress.add_task(
                "", total=event.macs, arm=event.arm, epoch=1, loss=0.0, train=0.0, test=0.0
            )
        elif isinstance(event, ArmStep):
            loss, train = self._means.after(event.loss, event.accuracy)
            self.progress.update(
                self._task, completed=event.macs, epoch=event.epoch, loss=loss, train=train
            )
        elif isinstance(event, ArmEvaluation):
            self.progress.update(self._task, test=event.accuracy)
        elif isinstance(event, ArmEnd):  # the nearest step may lie a little before the end
            self.progress.update(self._task, completed=self.progress.tasks[-1].total)
        elif isinstance(event, ArmGrowth):
            self.progress.console.print(arm_tables.growth(event))


class RecoveryBars:
    """The step of a pruning, the epoch after it, loss, and accuracy in training and test.

    Args:
        console: Where they show.
        steps: The number of steps.
        epochs: The epochs after each.
    """

    def __init__(self, console: Console, steps: int, epochs: int) -> None:
        self.progress = _progress(
            console, f"step {{task.fields[at]}}/{steps}", _EPOCHS, *_CLASSIFIED
        )
        self._epochs = epochs
        self._task = TaskID(0)
        self._means = RunningMeans()

    def begin(self, step: int, training_steps: int, accuracy: float) -> None:
        """Begins the training after a step, which left so much accuracy in the test."""
        self._means = RunningMeans()
        self._task = self.progress.add_task(
            "",
            total=training_steps,
            at=step,
            epochs=self._epochs,
            epoch=1,
            loss=0.0,
            train=0.0,
            test=accuracy,
        )

    def show_step(self, epoch: int, loss: float, accuracy: float) -> None:
        """Updates the bar after a training step."""
        loss, train = self._means.after(loss, accuracy)
        self.progress.update(self._task, advance=1, epoch=epoch, loss=loss, train=train)

    def show_test(self, accuracy: float) -> None:
        """Updates the bar after an epoch."""
        self.progress.update(self._task, test=accuracy)


def _progress(console: Console, first: str, second: str, *numbers: str) -> Progress:
    return Progress(
        TextColumn(first),
        TextColumn(second),
        BarColumn(bar_width=12),  # all fits into 80 characters
        *(TextColumn(number) for number in numbers),
        TimeRemainingColumn(),
        console=console,
    )
