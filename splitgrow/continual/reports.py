"""Reports of a learner: sizes, accuracies and times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from splitgrow.continual.body import Body
from splitgrow.continual.records import TaskRecord


@dataclass(frozen=True)
class TaskReport:
    """One learned task.

    Attributes:
        name: Its name.
        classes: Its number of classes.
        accuracy: The accuracy on the data that decisions are made on, when it was learned.
        seconds: The time to learn it.
        weights: The number of shared weights in its network, without those that a mask sets to 0.
        owned: The number of these that it owns; no other task has changed them since.
        own_numbers: The numbers kept for it alone: norms, biases, head.
        pick_bits: The number of bits of its picks.
        details: The method's own figures on it.
    """

    name: str
    classes: int
    accuracy: float
    seconds: float
    weights: int
    owned: int
    own_numbers: int
    pick_bits: int
    details: dict[str, Any]


@dataclass(frozen=True)
class Report:
    """The report of a learner.

    Attributes:
        method: The method's name.
        decide_on: The data for decisions.
        tasks: The learned tasks, in order.
        weights: The number of shared weights.
        first_weights: That number at first: the weights of one network.
        free: The number of shared weights without an owner.
        owner_bits: The number of bits that tell the owners of all of them.
    """

    method: str
    decide_on: str
    tasks: tuple[TaskReport, ...]
    weights: int
    first_weights: int
    free: int
    owner_bits: int

    @property
    def expansion(self) -> float:
        """The number of shared weights, divided by the one at first."""
        return self.weights / self.first_weights if self.first_weights else 1.0

    @property
    def bytes(self) -> int:
        """The size of all tasks' networks together: 32 bits a number, and the masks' bits."""
        numbers = self.weights + sum(task.own_numbers for task in self.tasks)
        bits = self.owner_bits + sum(task.pick_bits for task in self.tasks)
        return 4 * numbers + -(-bits // 8)

    @property
    def seconds(self) -> float:
        """The time that learning took, in all."""
        return sum(task.seconds for task in self.tasks)

    def __str__(self) -> str:
        lines = [
            f"{self.method}: {len(self.tasks)} tasks, {self.weights:,} shared weights "
            f"({self.expansion:.2f} times one network's, {self.free:,} free), "
            f"{self.bytes / 1e6:.2f} MB with masks, decided on {self.decide_on} data"
        ]
        lines += [
            f"  {task.name}: {100 * task.accuracy:.1f} %, {task.weights:,} weights of which "
            f"{task.owned:,} its own, {task.seconds:.1f} s"
            for task in self.tasks
        ]
        return "\n".join(lines)


def report_of(method: str, decide_on: str, body: Body, records: Sequence[TaskRecord]) -> Report:
    """The report on a body and records."""
    owners = list(body.owners.values())
    masked = any(bool(each.any()) for each in owners)
    return Report(
        method=method,
        decide_on=decide_on,
        tasks=tuple(_task(record, body, masked=masked) for record in records),
        weights=sum(_copied(record, body) for record in records) or body.size,
        first_weights=body.weights,
        free=sum(int((each == 0).sum()) for each in owners) if masked else 0,
        owner_bits=body.owner_bits * body.size,
    )


def _copied(record: TaskRecord, body: Body) -> int:
    """The number of shared weights that a task has copies of."""
    own = record.own or {}
    return sum(own[name].numel() for name in body.shared if name in own)


def _own_numbers(record: TaskRecord, body: Body) -> int:
    """The number of numbers kept for a task alone: its norms, biases and head."""
    tensors = [*(record.own or {}).values(), *record.head.parameters()]
    numbers = sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
    return numbers - _copied(record, body)


def _task(record: TaskRecord, body: Body, *, masked: bool) -> TaskReport:
    weights = owned = 0
    for name, owners in body.owners.items():
        own = owners == record.number
        earlier = (owners > 0) & (owners < record.number)
        owned += int(own.sum())
        weights += int(own.sum())
        if name in record.picks:
            weights += int((record.unpacked(name, earlier.shape) != 0).logical_and(earlier).sum())
        else:
            weights += int(earlier.sum())
    return TaskReport(
        name=record.name,
        classes=record.classes,
        accuracy=record.accuracy,
        seconds=record.seconds,
        weights=weights if masked else body.size,
        owned=owned,
        own_numbers=_own_numbers(record, body),
        pick_bits=record.pick_bits,
        details=record.details,
    )
