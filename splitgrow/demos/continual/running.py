"""A run: tasks learned one after the other, judged after each, and written down."""

from __future__ import annotations

import hashlib
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import splitgrow
from splitgrow import continual
from splitgrow.cli.continual_settings import RunSettings
from splitgrow.cli.targets import load_model
from splitgrow.cli.weights import fill_plain_, is_own_checkpoint
from splitgrow.continual import Data, Learner, Report, Task, Training
from splitgrow.continual.settings import goal_for
from splitgrow.continual.tasks import with_validation
from splitgrow.demos.augmentation import Augmentation, Augmented
from splitgrow.demos.backbones import BACKBONES
from splitgrow.demos.continual.method_options import checked_options
from splitgrow.demos.continual.outcome import (
    RESULTS,
    NetworkOutcome,
    OutcomeError,
    RunOutcome,
    TaskOutcome,
    read_outcome,
    same_settings,
    write_outcome,
)
from splitgrow.demos.datasets import Dataset
from splitgrow.utils.closest_names import did_you_mean

_ROUNDS = 25
_GOALS = ("goal", "threshold")
"""The options that are accuracies which a task has to reach."""
_EXPECTING = ("cpg", "pack-and-expand", "packnet")
"""Methods that plan for the number of tasks."""


class ContinualRun:
    """A run in a directory: a new one, or the rest of one that was stopped.

    Args:
        settings: The chosen settings.
        dataset: The data.
        tasks: The tasks that they become.
        out: The directory.
        watch: Receives the learner's events.

    Raises:
        OutcomeError: If another run is in the directory.
        TypeError: If the method has no such option.
        ValueError: If an option makes no sense.
    """

    def __init__(
        self,
        settings: RunSettings,
        dataset: Dataset,
        tasks: Sequence[Task],
        out: Path,
        watch: Callable[[continual.Event], None],
    ) -> None:
        self.settings, self.dataset = settings, dataset
        self.tasks = tuple(_augmented(task, settings, dataset) for task in tasks)
        self._out = out
        self._before = self._outcome_before()
        self.learner = self._new_learner(watch)
        for task in self.tasks:  # a goal that makes no sense for the last is told before the first
            for name in _GOALS:
                goal_for(task, name, getattr(self.learner, name, None))
        self._rows: list[tuple[float, ...]] = []
        self._learned: list[TaskOutcome] = []
        self._digests: list[str] = []

    @property
    def done(self) -> int:
        """How many tasks are learned."""
        return len(self.learner.records)

    def resume(self) -> int:
        """Takes over the learned tasks; returns their number.

        Raises:
            OutcomeError: If their files do not belong to them.
        """
        self.learner.resume()
        before = self._before
        if before is not None:
            self._rows, self._learned = list(before.accuracy), list(before.tasks)
            self._digests = list(before.digests)
        names = tuple(task.name for task in self.tasks[: self.done])
        missing = self.done - len(self._rows)  # stopped between learning and judging
        at_once = self.done if self.settings.method == "joint" else 1
        if self.learner.tasks != names or not 0 <= missing <= at_once:
            raise OutcomeError(f"{self._out} holds other tasks; give another directory")
        if missing:
            self._note()
        return self.done

    def finish(self) -> RunOutcome:
        """Learns the tasks that are left, and measures.

        Raises:
            FloatingPointError: If the training has diverged.
        """
        if self.settings.method == "joint":
            if not self.done:
                self.learner.learn_all(self.tasks)
                self._note()
        else:
            for task in self.tasks[self.done :]:
                self.learner.learn(task)
                self._note()
        outcome = self._outcome(finished=True)
        write_outcome(self._out / RESULTS, outcome)
        return outcome

    def _new_learner(self, watch: Callable[[continual.Event], None]) -> Learner:
        settings = self.settings
        options = checked_options(settings.method, settings.options)
        if settings.method in _EXPECTING:
            options.setdefault("expected_tasks", len(self.tasks))
        if settings.method == "packnet":
            options.setdefault("prune", "even")
        torch.manual_seed(settings.seed)
        return continual.METHODS[settings.method](
            backbone(settings, self.dataset),
            self.dataset.x_train[:2],
            training=Training(
                epochs=settings.epochs,
                batch_size=settings.batch_size,
                lr=settings.learning_rate,
                momentum=settings.momentum,
                weight_decay=settings.weight_decay,
                score_lr=settings.score_rate,
            ),
            decide_on=settings.decide_on,
            validation_share=settings.validation_share,
            seed=settings.seed,
            callbacks=[watch],
            directory=self._out,
            **options,
        )

    def _outcome_before(self) -> RunOutcome | None:
        path = self._out / RESULTS
        if not path.exists():
            return None
        before = read_outcome(path)
        differing = same_settings(before, self.settings)
        if differing:
            raise OutcomeError(
                f"{self._out} holds a run with other settings: {'; '.join(differing)}; give "
                f"another directory, or remove it"
            )
        return before

    def _note(self) -> None:
        """Judges the learned tasks, and writes the results."""
        row, report = self._judged(), self.learner.report()
        for index in range(len(self._rows), self.done):
            self._rows.append(row[: index + 1])
            self._learned.append(_task_outcome(report, index))
            self._digests.append(self._digest(self.tasks[index]))
        write_outcome(self._out / RESULTS, self._outcome(finished=False))

    def _judged(self) -> tuple[float, ...]:
        found = []
        for task in self.tasks[: self.done]:
            found.append(self.learner.evaluate(_test(task), task=task.name))
        return tuple(found)

    def _digest(self, task: Task) -> str:
        """A digest of the bits that a task's network gives for some test images."""
        x = next(iter(self.learner.batches(_test(task))))[0]
        logits = self.learner.predict(x, task=task.name)
        return hashlib.sha256(logits.cpu().numpy().tobytes()).hexdigest()[:16]

    def _outcome(self, *, finished: bool) -> RunOutcome:
        networks: tuple[NetworkOutcome, ...] = ()
        unchanged: tuple[bool, ...] = ()
        if finished:
            last = self.learner.network(self.tasks[-1].name, compact=False)
            networks = tuple(self._measured(task, last) for task in self.tasks)
            now = [self._digest(task) for task in self.tasks]
            unchanged = tuple(a == b for a, b in zip(now, self._digests, strict=True))
        return RunOutcome(
            settings=self.settings,
            dataset=self.dataset.name,
            images=(_images(self.tasks, "train"), _images(self.tasks, "test")),
            finished=finished,
            tasks=tuple(self._learned),
            accuracy=tuple(self._rows),
            first_weights=self.learner.body.weights,
            networks=networks,
            digests=tuple(self._digests),
            unchanged=unchanged,
            versions=_versions(),
        )

    def _measured(self, task: Task, last: nn.Module) -> NetworkOutcome:
        own = self.learner.network(task.name, compact=False)
        compact = self.learner.network(task.name)
        x = next(iter(self.learner.batches(_test(task))))[0]
        with torch.no_grad():
            expected, given = own(x), compact(x)
            milliseconds = _milliseconds([last, own, compact], x)
        scale = max(float(expected.abs().max()), 1e-30)
        return NetworkOutcome(
            task=task.name,
            parameters=_size(own),
            compact=_size(compact),
            whole_milliseconds=milliseconds[0],
            milliseconds=milliseconds[1],
            compact_milliseconds=milliseconds[2],
            difference=float((given - expected).abs().max()) / scale,
        )


def _task_outcome(report: Report, index: int) -> TaskOutcome:
    task = report.tasks[index]
    return TaskOutcome(
        name=task.name,
        classes=task.classes,
        decided=task.accuracy,
        seconds=task.seconds,
        weights=task.weights,
        own_numbers=task.own_numbers,
        pick_bits=task.pick_bits,
        shared=report.weights,
        bytes=report.bytes,
        details=task.details,
    )


def _augmented(task: Task, settings: RunSettings, dataset: Dataset) -> Task:
    """A task whose training images are changed as they are seen, but those to decide on are not."""
    change = Augmentation.of(settings.augment, dataset.size)
    if change is None:
        return task
    if settings.decide_on == "validation":
        generator = torch.Generator().manual_seed(settings.seed)
        task = with_validation(task, settings.validation_share, generator)
    return replace(task, train=Augmented(task.train, change))


def backbone(settings: RunSettings, dataset: Dataset) -> nn.Module:
    """The network that a run begins with, with its weights.

    Raises:
        click.ClickException: If MODULE:FACTORY makes none, or the weights do not fit it.
        CheckpointError: Likewise.
        OutcomeError: If there is no such name.
    """
    model = _fresh(settings, dataset)
    if not settings.checkpoint:
        return model
    path = Path(settings.checkpoint)
    if is_own_checkpoint(path):
        splitgrow.load(model, path, training=False)
        return splitgrow.merge(model)
    fill_plain_(model, path)
    return model


def _fresh(settings: RunSettings, dataset: Dataset) -> nn.Module:
    """The network as it is made.

    Raises:
        click.ClickException: If MODULE:FACTORY makes none.
        OutcomeError: If there is no such name.
    """
    if settings.backbone in BACKBONES:
        made: nn.Module = BACKBONES[settings.backbone](
            dataset.channels, len(dataset.classes), dataset.size, settings.width
        )
        return made
    if ":" not in settings.backbone:
        near = did_you_mean(settings.backbone, BACKBONES, "choose one of these")
        raise OutcomeError(
            f"{settings.backbone!r} is no backbone: it is one of {', '.join(BACKBONES)}, or "
            f"MODULE:FACTORY; {near}"
        )
    return load_model(settings.backbone)


def _milliseconds(networks: Sequence[nn.Module], x: Tensor) -> list[float]:
    """Each network's median time for a batch; they take turns, so that noise hits all alike."""
    taken: list[list[float]] = [[] for _ in networks]
    for network in networks:  # the first call sets up caches for later ones
        network(x)
    for _ in range(_ROUNDS):
        for network, times in zip(networks, taken, strict=True):
            began = time.perf_counter()
            network(x)
            times.append(time.perf_counter() - began)
    return [1000 * statistics.median(times) for times in taken]


def _test(task: Task) -> Data:
    assert task.test is not None
    return task.test


def _size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _images(tasks: Sequence[Task], part: str) -> int:
    data: list[Any] = [getattr(task, part) for task in tasks]
    return sum(len(each) for each in data)


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "splitgrow": getattr(splitgrow, "__version__", ""),
    }
