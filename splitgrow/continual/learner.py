"""The base of all methods of continual learning."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from splitgrow.continual.body import Body
from splitgrow.continual.events import Callback, EpochDone, Event, Grown, Judged, TaskLearned
from splitgrow.continual.options import ShowsAllOptions
from splitgrow.continual.records import TaskRecord
from splitgrow.continual.reports import Report, report_of
from splitgrow.continual.saving import read_learned, write_learned
from splitgrow.continual.settings import check_settings, checked_inputs, plain_data
from splitgrow.continual.stages import Stages, made, seed_of
from splitgrow.continual.studies import Study, whole_study
from splitgrow.continual.tasks import Batches, Data, Protocol, Task, checked, with_validation
from splitgrow.continual.training import Fit, Loss, Training, accuracy, cross_entropy
from splitgrow.growth.initializers import Initializer
from splitgrow.pruning.dead_units.without_dead_units import without_dead_units
from splitgrow.utils.preserve import keep_surroundings_
from splitgrow.utils.rollback import Undo, temporarily

FILE = "learner.safetensors"
_CACHED = 4  # networks that are kept ready to predict


class Learner(ShowsAllOptions):
    """Learns one task after the other; the base of all methods.

    The model is copied and its head removed: every task gets a linear head of its own. The task of
    an input must be given, it is not inferred (task-incremental learning).

    Args:
        model: Any model that `splitgrow.growable` takes, which classifies or returns features.
        example_inputs: A tensor, or a tuple of the positional arguments of an example call.
        head: The path of the model's last linear layer; "auto" finds it. None if the model returns
            features `(N, width)`.
        training: The settings of training.
        decide_on: The data for decisions: "validation" data, or the "test" data, as published code
            of some methods has it; see `Protocol`.
        validation_share: The share of a task's training data that is set apart for decisions, if it
            has no validation data.
        seed: The seed of all random numbers.
        callbacks: Functions that take each event; see `splitgrow.continual.Event`.
        directory: Where to keep the learned tasks and the one in progress: a learner made again
            there continues with `resume` where it was killed. None to keep nothing.
        save_every: The seconds after which a training in progress is written again.

    Attributes:
        training: The settings of training.
        decide_on: The data for decisions.
        seed: The seed of all random numbers.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If one is out of range, or the model has no such head.
        UnsupportedModelError: If no head is found, or the features are no matrix.
    """

    method: ClassVar[str]
    """The name of the method."""
    frozen: ClassVar[bool] = True
    """Whether the values of a learned task stay the same, bit for bit."""
    settings: ClassVar[tuple[str, ...]] = ()
    """The names of the arguments that the method adds to these."""

    def __init__(  # noqa: PLR0913
        self,
        model: nn.Module,
        example_inputs: Tensor | tuple[Any, ...],
        *,
        head: str | Literal["auto"] | None = "auto",
        training: Training | None = None,
        decide_on: Protocol = "validation",
        validation_share: float = 0.1,
        seed: int = 0,
        callbacks: Sequence[Callback] = (),
        directory: str | os.PathLike[str] | None = None,
        save_every: float = 20.0,
    ) -> None:
        inputs = checked_inputs(model, example_inputs)
        check_settings(decide_on, validation_share, seed)
        self.training = Training() if training is None else training
        self.decide_on, self.seed = decide_on, seed
        self._share, self._save_every = validation_share, save_every
        self._callbacks = tuple(callbacks)
        self._directory = None if directory is None else Path(directory)
        self.body = self._first = Body(model, inputs, head)
        self.records: list[TaskRecord] = []
        self._networks: dict[str, nn.Module] = {}
        self._stages = Stages(None, "", None)

    # -- calls of users --------------------------------------------------------------------------

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks that are learned, in order."""
        return tuple(record.name for record in self.records)

    def learn(self, task: Task) -> TaskRecord:
        """Learns a task.

        Args:
            task: The task, with its data.

        Returns:
            The record of the task.

        Raises:
            TypeError: If it is no task.
            ValueError: If a task of its name is learned already, or it lacks data to decide on.
            FloatingPointError: If the training has diverged.
            CheckpointError: If something cannot be written, or the directory is of another run.

        If it fails, the learner is as before, and the training so far is in `directory`.
        """
        return self._learn_together([task])[0]

    def learn_all(self, tasks: Iterable[Task]) -> list[TaskRecord]:
        """Learns several tasks, one after the other; otherwise as `learn`."""
        return [self.learn(task) for task in tasks]

    def network(self, task: str, *, compact: bool = True) -> nn.Module:
        """A task's network as a plain model of the user's class, in evaluation mode.

        It has stock layers with the widths of the body when the task was learned, the weights that
        the task sees, its own norms and biases, and its head.

        Args:
            task: The task's name.
            compact: Whether to remove units that nothing reads or that are always zero. That
                changes the order of sums, and so the last bits of the outputs.

        Raises:
            ValueError: If no such task is learned.
        """
        record = self._record(task)
        plain = self._plain(record)
        return without_dead_units(plain, self.body.inputs)[0] if compact else plain

    def predict(self, *inputs: Any, task: str) -> Tensor:
        """The logits `(N, classes)` of a task, in evaluation mode; bit for bit the same forever.

        Raises:
            ValueError: If no such task is learned.
        """
        with torch.no_grad():
            logits: Tensor = self._ready(task)(*inputs)
        return logits

    def evaluate(self, data: Data, *, task: str) -> float:
        """The share of examples that are classified correctly.

        Raises:
            ValueError: If no such task is learned.
        """
        return accuracy(self._ready(task), self.batches(checked(data)))

    def report(self) -> Report:
        """The sizes, accuracies and times of the learned tasks."""
        return report_of(self.method, self.decide_on, self.body, self.records)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves all learned tasks to a file of safetensors, without pickle.

        Raises:
            CheckpointError: If it cannot be written; a file that was there is untouched then.
        """
        write_learned(self.body, self.records, path, kind=self._kind(), more=self._extra())

    def load(self, path: str | os.PathLike[str]) -> None:
        """Loads a file that `save` has written, into a learner that has not learned anything.

        Args:
            path: The file. The learner is made with the same model and arguments as the one that
                was saved.

        Raises:
            CheckpointError: If the file is damaged, or of another method or other settings.
            ValueError: If the learner has learned something.
        """
        if self.records:
            raise ValueError("this learner has learned tasks already; load into a new one")
        body, records, more = read_learned(self.body, path, kind=self._kind())
        self._set_extra(more, body)
        self.body, self.records = body, records

    def resume(self) -> bool:
        """Takes over the state that a learner has left in `directory`, if it has.

        Returns:
            Whether there was any.

        Raises:
            CheckpointError: If it is damaged, or of another method or other settings.
        """
        if self._directory is None or not (self._directory / FILE).exists():
            return False
        self.load(self._directory / FILE)
        return True

    # -- for methods -----------------------------------------------------------------------------

    @property
    def _next(self) -> int:
        """The number of the task that is learned next: the first is 1."""
        return len(self.records) + 1

    def _learned(self, tasks: Sequence[Task]) -> list[TaskRecord]:
        """Learns tasks with the body, and returns their records; several only where asked."""
        (task,) = tasks
        return [self._learn(task, self._next)]

    def _learn(self, task: Task, number: int) -> TaskRecord:
        """Learns a task with the body, and returns its record.

        Raises:
            NotImplementedError: Always; methods define it.
        """
        raise NotImplementedError

    def _extra(self) -> Any:
        """Other data to save."""
        return None

    def _set_extra(self, extra: Any, body: Body) -> None:
        """Takes over the data that `_extra` returned."""

    def _plain(self, record: TaskRecord) -> nn.Module:
        return self.body.plain(record.values(self.body), record.edit, record.head)

    def _train(
        self,
        study: Study,
        task: Task,
        what: str,
        *,
        epochs: int | None = None,
        training: Training | None = None,
        loss: Loss = cross_entropy,
        after_step: Callable[[int], None] | None = None,
    ) -> Fit:
        """Trains a study on a task's data, as one stage."""
        batches = self.batches(task.train)
        own = self.training if training is None else training
        number = self._next

        def fit(stage: int) -> Fit:
            seed = seed_of(self.seed, number, stage)
            return Fit(
                study, batches, own, seed=seed, epochs=epochs, loss=loss, after_step=after_step
            )

        def watch(done: Fit, epoch: Any) -> None:
            event = EpochDone(task.name, what, done.epoch, done.epochs, epoch.loss, epoch.accuracy)
            self._tell(event)

        done: Fit = self._stages(study, fit, watch)
        study.eval()
        return done

    def _judge(self, study: nn.Module, task: Task, what: str, goal: float | None = None) -> float:
        """The accuracy that decides."""
        data = task.test if self.decide_on == "test" else task.validation
        assert data is not None
        found = accuracy(study, self.batches(data))
        self._tell(Judged(task.name, what, found, goal))
        return found

    def _grow(self, task: Task, factor: float, initializer: str | Initializer = "zero") -> bool:
        """Widens the body for a task; returns whether anything grew."""
        torch.manual_seed(seed_of(self.seed, self._next, "grow", self.body.size))
        if self.body.grow(factor, initializer) is None:
            return False
        size = self.body.size
        self._tell(Grown(task.name, size, size / self.body.weights))
        return True

    def _new_head(self, classes: int, body: Body | None = None) -> nn.Linear:
        torch.manual_seed(seed_of(self.seed, self._next, "head"))
        return (self.body if body is None else body).new_head(classes)

    def _trained_alone(self, task: Task) -> Study:
        """A network of the task's own, trained from the model's first values."""
        body = self._first.copied()
        study = whole_study(body, self._new_head(task.classes, body))
        self._train(study, task, "alone")
        return study

    def _goal_of(self, task: Task, given: float | None) -> float:
        """The goal of a task: the accuracy given, or that of a network trained on it alone."""
        return self._judge(self._trained_alone(task), task, "alone") if given is None else given

    def batches(self, data: Data) -> Batches:
        """Batches of data, on the network's device."""
        return Batches(data, self.training.batch_size, self.body.device)

    def _tell(self, event: Event) -> None:
        for callback in self._callbacks:
            callback(event)

    # -- inside ----------------------------------------------------------------------------------

    def _ready(self, task: str) -> nn.Module:
        """A task's network, cached."""
        network = self._networks.get(task)
        if network is None:
            network = self.network(task, compact=False)
            while len(self._networks) >= _CACHED:
                self._networks.pop(next(iter(self._networks)))
            self._networks[task] = network
        return network

    def _learn_together(self, tasks: Sequence[Task]) -> list[TaskRecord]:
        """Learns tasks, all or nothing.

        Raises:
            TypeError: If one is no task.
            ValueError: If one of its name is learned already.
        """
        names = [*self.tasks]
        for task in tasks:
            if not isinstance(task, Task):
                raise TypeError(f"task must be a splitgrow.continual.Task, got {task!r}"[:200])
            if task.name in names:
                raise ValueError(f"task {task.name!r} is learned already")
            names.append(task.name)
        number = self._next
        divided = [self._divided(task, number + index) for index, task in enumerate(tasks)]
        stages = Stages(
            made(self._directory), f"task-{number:04d}", self._identity(tasks), self._save_every
        )
        records = temporarily(self._learn_on_a_copy)(divided, stages)
        stages.clear()
        for record in records:
            told = TaskLearned(record.name, record.accuracy, record.seconds, record.details)
            self._tell(told)
        return records

    def _learn_on_a_copy(
        self, undo: Undo, tasks: Sequence[Task], stages: Stages
    ) -> list[TaskRecord]:
        """Learns tasks on a copy of the body, which becomes the body on success."""
        began = time.monotonic()
        keep_surroundings_(self.body.model, undo)
        since = undo.depth
        undo.keep(vars(self))
        self._stages, self.body = stages, self.body.copied()
        torch.manual_seed(seed_of(self.seed, self._next, "begin"))
        records = self._learned(tasks)
        seconds = stages.earlier + time.monotonic() - began
        for record in records:
            record.seconds = seconds / len(records)
        self._keep(records)
        undo.commit(since)
        return records

    def _divided(self, task: Task, number: int) -> Task:
        if self.decide_on == "test":
            if task.test is None:
                raise ValueError(f"task {task.name!r} has no test data to decide on")
            return task
        generator = torch.Generator().manual_seed(seed_of(self.seed, number, "validation"))
        return with_validation(task, self._share, generator)

    def _keep(self, records: Iterable[TaskRecord]) -> None:
        self.records = [*self.records, *records]
        self._networks = {} if not self.frozen else self._networks
        if self._directory is not None:
            self.save(self._directory / FILE)

    def _kind(self) -> dict[str, Any]:
        """The method and its settings, as plain data; a file of other ones is refused."""
        kind = {
            "method": self.method,
            "training": dict(vars(self.training)),
            "decide_on": self.decide_on,
            "validation_share": self._share,
            "seed": self.seed,
            **{name: getattr(self, name) for name in self.settings},
        }
        return dict(plain_data(kind))

    def _identity(self, tasks: Sequence[Task]) -> dict[str, Any]:
        return {**self._kind(), "known": [*self.tasks], "tasks": [task.name for task in tasks]}

    def _record(self, task: str) -> TaskRecord:
        for record in self.records:
            if record.name == task:
                return record
        raise ValueError(
            f"no task {task!r} is learned; there are {', '.join(self.tasks) or 'none'}"
        )
