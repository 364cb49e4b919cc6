"""The results of `splitgrow continual`, as plain records that go into JSON and come back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from splitgrow.checkpoints.asides import write_bytes
from splitgrow.checkpoints.files import check_regular
from splitgrow.cli.continual_settings import RunSettings
from splitgrow.errors import CheckpointError

OUTCOME_VERSION = 2
RESULTS = "results.json"


class OutcomeError(Exception):
    """A file holds no run, or the run of something else."""


@dataclass(frozen=True)
class TaskOutcome:
    """A task once it was learned.

    Attributes:
        name: Its name.
        classes: Its number of classes.
        decided: The accuracy on the data that decisions are made on.
        seconds: How long it took to learn.
        weights: How many shared weights its network uses.
        own_numbers: How many numbers are kept for it alone.
        pick_bits: How many bits its picks take.
        shared: How many weights were shared by then.
        bytes: The size of all tasks' networks together by then.
        details: The method's own measurements.
    """

    name: str
    classes: int
    decided: float
    seconds: float
    weights: int
    own_numbers: int
    pick_bits: int
    shared: int
    bytes: int
    details: dict[str, Any]


@dataclass(frozen=True)
class NetworkOutcome:
    """A task's plain network, with and without the units that it does not need.

    The times are medians of batches that the three networks took in turns.

    Attributes:
        task: The task's name.
        parameters: How many parameters it has; the last task's is the whole network.
        compact: How many once dead units are taken out.
        whole_milliseconds: For a batch, of the whole network.
        milliseconds: Of this one.
        compact_milliseconds: Once dead units are taken out.
        difference: How far the outputs differ once they are, relative to the largest.
    """

    task: str
    parameters: int
    compact: int
    whole_milliseconds: float
    milliseconds: float
    compact_milliseconds: float
    difference: float


@dataclass(frozen=True, kw_only=True)
class RunOutcome:
    """Everything a run has to say, finished or not.

    Attributes:
        settings: The chosen settings.
        dataset: The name of the data.
        images: How many training and test images all tasks have.
        finished: Whether all tasks are learned.
        tasks: The tasks that are learned, in order.
        accuracy: For each learned task, the test accuracy of it and of those before it right then.
        first_weights: How many shared weights the network had at first.
        networks: The tasks' plain networks, measured at the end.
        digests: Of the bits that every task's network gave for some images when it was learned.
        unchanged: Whether it gave the same at the end, bit for bit.
        versions: Of the libraries that it ran with.
    """

    settings: RunSettings
    dataset: str
    images: tuple[int, int]
    finished: bool
    tasks: tuple[TaskOutcome, ...]
    accuracy: tuple[tuple[float, ...], ...]
    first_weights: int
    networks: tuple[NetworkOutcome, ...] = ()
    digests: tuple[str, ...] = ()
    unchanged: tuple[bool, ...] = ()
    versions: dict[str, str]

    @property
    def mean_accuracy(self) -> float:
        """The mean test accuracy of all tasks, after the last."""
        return sum(self.accuracy[-1]) / len(self.accuracy[-1]) if self.accuracy else 0.0

    @property
    def learned_accuracy(self) -> float:
        """The mean test accuracy of every task when it was learned."""
        own = [row[-1] for row in self.accuracy]
        return sum(own) / len(own) if own else 0.0

    @property
    def forgetting(self) -> float:
        """By how much the accuracy of a task fell from its best to the last, on average."""
        return forgetting_of(self.accuracy)

    @property
    def expansion(self) -> float:
        """How many times the weights of one network there are."""
        return self.tasks[-1].shared / self.first_weights if self.tasks else 1.0

    @property
    def seconds(self) -> float:
        """How long learning took."""
        return sum(task.seconds for task in self.tasks)


def forgetting_of(accuracy: Sequence[Sequence[float]]) -> float:
    """By how much the accuracy of a task fell from its best to the last, on average.

    Chaudhry et al., Riemannian Walk for Incremental Learning, section 3; the last task does not
    count.

    Args:
        accuracy: For each learned task, the accuracies of it and of those before it right then.
    """
    if len(accuracy) < 2:
        return 0.0
    last = accuracy[-1]
    drops = [
        max(row[index] for row in accuracy[index:]) - last[index] for index in range(len(last) - 1)
    ]
    return sum(drops) / len(drops)


def write_outcome(path: Path, outcome: RunOutcome) -> None:
    """Writes a run as JSON: whole, or not at all.

    Raises:
        CheckpointError: If it cannot be written.
    """
    write_bytes(path, f"{outcome_json(outcome)}\n".encode())


def outcome_json(outcome: RunOutcome) -> str:
    """A run as `write_outcome` writes it."""
    return json.dumps({"version": OUTCOME_VERSION, **asdict(outcome)}, indent=1)


def read_outcome(path: Path) -> RunOutcome:
    """The run in a file, or in a directory's results.

    Raises:
        OutcomeError: If there is none, or of another version.
    """
    path = path / RESULTS if path.is_dir() else path
    try:
        check_regular(path)
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise OutcomeError(f"{path}: there is no such file") from None
    except (OSError, CheckpointError, ValueError, RecursionError) as error:
        raise OutcomeError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict) or document.pop("version", None) != OUTCOME_VERSION:
        raise OutcomeError(
            f"{path} holds no run of `splitgrow continual` of version {OUTCOME_VERSION}"
        )
    try:
        return RunOutcome(
            **{
                **document,
                "settings": RunSettings(**document["settings"]),
                "images": tuple(document["images"]),
                "tasks": tuple(TaskOutcome(**each) for each in document["tasks"]),
                "accuracy": tuple(tuple(map(float, row)) for row in document["accuracy"]),
                "networks": tuple(NetworkOutcome(**each) for each in document["networks"]),
                "digests": tuple(document["digests"]),
                "unchanged": tuple(document["unchanged"]),
            }
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OutcomeError(f"{path} holds no run of `splitgrow continual`: {error}") from error


def same_settings(outcome: RunOutcome, settings: RunSettings) -> list[str]:
    """How the settings of a run differ from others; threads do not count."""
    names = [each.name for each in fields(settings) if each.name != "threads"]
    pairs = [(n, getattr(outcome.settings, n), getattr(settings, n)) for n in names]
    return [f"{name} {there!r}, not {here!r}" for name, there, here in pairs if there != here]
