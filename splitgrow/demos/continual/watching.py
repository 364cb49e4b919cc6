"""The progress of a run: all tasks, and the training that is under way."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from splitgrow.continual import EpochDone, Event, Grown, Judged, TaskLearned
from splitgrow.demos.continual.comparison import duration


class RunWatch:
    """Two bars: tasks with the time that is left, and the epochs of a training.

    Args:
        console: Where they are.
        tasks: How many tasks there are.
    """

    def __init__(self, console: Console, tasks: int) -> None:
        self.progress = Progress(
            TextColumn("{task.description:24.24}"),
            BarColumn(bar_width=12),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
        )
        self._all = self.progress.add_task("tasks", total=tasks, note="")
        self._stage: TaskID | None = None
        self._name = ("", "")

    def resume(self, done: int) -> None:
        """Takes note of how many tasks are learned already."""
        self.progress.update(self._all, completed=done)

    def __call__(self, event: Event) -> None:
        """Updates the bars after an event."""
        if isinstance(event, EpochDone):
            self._show(event)
        elif isinstance(event, Judged):
            goal = "" if event.goal is None else f", goal {event.goal:.1%}"
            self._print(f"  {event.task}: {event.stage}: {event.accuracy:.1%}{goal}")
        elif isinstance(event, Grown):
            self._print(
                f"  {event.task}: grown to {event.weights:,} weights, {event.expansion:.2f} times "
                f"the first"
            )
        elif isinstance(event, TaskLearned):
            self._drop()
            self.progress.advance(self._all)
            self._print(f"{event.task}: {event.accuracy:.1%} in {duration(event.seconds)}")

    def _show(self, event: EpochDone) -> None:
        if self._name != (event.task, event.stage):
            self._drop()
            self._name = (event.task, event.stage)
        if self._stage is None:
            name = f"{event.task}: {event.stage}"
            self._stage = self.progress.add_task(name, total=event.epochs, note="")
        note = f"loss {event.loss:.3f}, training {event.accuracy:.1%}"
        self.progress.update(self._stage, completed=event.epoch, note=note)

    def _drop(self) -> None:
        if self._stage is not None:
            self.progress.remove_task(self._stage)
        self._stage, self._name = None, ("", "")

    def _print(self, text: str) -> None:
        self.progress.console.print(text)
