"""The record of a learned task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.continual.body import Body
from splitgrow.continual.masks import unpacked
from splitgrow.errors import CheckpointError


@dataclass(eq=False)
class TaskRecord:
    """A learned task.

    Attributes:
        name: The task's name.
        number: Its number, from 1; as such it owns weights.
        classes: Its number of classes.
        edit: The last edit of the body then: a timestamp of the widths that it uses.
        head: Its head.
        own: Its own tensors by slots' names: its biases, its norms' tensors; with some methods all.
            None if it uses the body as it is.
        picks: The weights of earlier tasks that it uses, packed; all for tensors not in it.
        accuracy: The accuracy on the data that decisions are made on, when it was learned.
        seconds: The time to learn it.
        details: The method's own figures on it, as plain data.
    """

    name: str
    number: int
    classes: int
    edit: int
    head: nn.Linear
    own: dict[str, Tensor] | None = None
    picks: dict[str, Tensor] = field(default_factory=dict)
    accuracy: float = 0.0
    seconds: float = 0.0
    details: dict[str, Any] = field(default_factory=dict)

    def values(self, body: Body) -> dict[str, Tensor]:
        """Every tensor of the body as this task sees it."""
        if self.own is None:
            return {}
        found = dict(self.own)
        for name, slot in body.shared.items():
            if name in found:
                continue
            tensor, owners = slot.tensor.detach(), body.owners[name]
            zeros = torch.zeros_like(tensor)
            earlier = torch.where((owners > 0) & (owners < self.number), tensor, zeros)
            if name in self.picks:
                earlier *= self.unpacked(name, tensor.shape).to(tensor.dtype)
            found[name] = torch.where(owners == self.number, tensor, earlier)
        return found

    def unpacked(self, name: str, shape: torch.Size) -> Tensor:
        """Its picks of weights of earlier tasks: 0, 1 or -1 for each."""
        return unpacked(self.picks[name], shape)

    @property
    def pick_bits(self) -> int:
        """The number of bits of its picks."""
        return sum(8 * packed.numel() for packed in self.picks.values())

    def written(self) -> dict[str, Any]:
        """The record as plain data and tensors."""
        plain = {name: getattr(self, name) for name in _PLAIN}
        weight, bias = self.head.weight.detach(), self.head.bias.detach()
        return {**plain, "head": [weight, bias], "own": self.own, "picks": self.picks}


_PLAIN = {
    "name": str,
    "number": int,
    "classes": int,
    "edit": int,
    "accuracy": float,
    "seconds": float,
    "details": dict,
}


def read_task_record(data: Any) -> TaskRecord:
    """The record that `TaskRecord.written` has made plain.

    Raises:
        CheckpointError: If it is something else.
    """
    if not isinstance(data, Mapping) or {*data} != {*_PLAIN, "head", "own", "picks"}:
        raise CheckpointError("the file has something that is no learned task")
    for name, kind in _PLAIN.items():
        if not isinstance(data[name], kind):
            raise CheckpointError(f"the file has {data[name]!r} as the {name} of a learned task")
    head = data["head"]
    if not isinstance(head, list) or [t.dim() for t in head if isinstance(t, Tensor)] != [2, 1]:
        raise CheckpointError(f"the file has no head of task {data['name']!r}")
    weight, bias = head
    if weight.shape[0] != data["classes"] or bias.shape != weight.shape[:1]:
        raise CheckpointError(f"the head of task {data['name']!r} is of another shape")
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    made.weight, made.bias = nn.Parameter(weight), nn.Parameter(bias)
    return TaskRecord(
        head=made,
        own=None if data["own"] is None else _tensors(data["own"]),
        picks=_tensors(data["picks"]),
        **{name: data[name] for name in _PLAIN},
    )


def _tensors(data: Any) -> dict[str, Tensor]:
    if not isinstance(data, dict) or not all(isinstance(t, Tensor) for t in data.values()):
        raise CheckpointError("the file has something else than tensors for a learned task")
    return dict(data)
