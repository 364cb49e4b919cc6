"""Learned tasks in a file, and back: the body by its own checkpoint, the rest beside it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from splitgrow.checkpoints import load, save
from splitgrow.continual.body import Body
from splitgrow.continual.records import TaskRecord, read_task_record
from splitgrow.errors import CheckpointError

_PARTS = {"kind", "owners", "weights", "records", "more"}


def write_learned(
    body: Body,
    records: Sequence[TaskRecord],
    path: str | os.PathLike[str],
    *,
    kind: Mapping[str, Any],
    more: Any,
) -> None:
    """Writes learned tasks to a file.

    Args:
        body: The shared part of the tasks.
        records: The records of the tasks.
        path: The file.
        kind: The method and its settings, as plain data.
        more: Other data of the learner.

    Raises:
        CheckpointError: If it cannot be written; a file that was there is untouched then.
    """
    extra = {
        "kind": dict(kind),
        "owners": body.owners,
        "weights": body.weights,
        "records": [record.written() for record in records],
        "more": more,
    }
    save(body.model, path, extra=extra)


def read_learned(
    body: Body, path: str | os.PathLike[str], *, kind: Mapping[str, Any]
) -> tuple[Body, list[TaskRecord], Any]:
    """The learned tasks in a file.

    Args:
        body: A body without learned tasks, which stays as it is.
        path: The file.
        kind: The method and settings that the file must have.

    Raises:
        CheckpointError: If the file is damaged, or something else has learned it.
    """
    body, name = body.copied(), os.fspath(path)
    extra = load(body.model, path)
    if not isinstance(extra, Mapping) or {*extra} != _PARTS:
        raise CheckpointError(f"{name} holds no learner")
    differing = _differences(extra["kind"], kind)
    if differing:
        raise CheckpointError(
            f"{name} was learned with other settings: {'; '.join(differing)}; give another "
            f"directory, or the same settings"
        )
    if not isinstance(extra["records"], list) or not isinstance(extra["owners"], dict):
        raise CheckpointError(f"{name} holds no learner")
    if type(extra["weights"]) is not int:
        raise CheckpointError(f"{name} holds no learner")
    records = [read_task_record(item) for item in extra["records"]]
    body.renew()
    _set_owners(body, extra["owners"], max((r.number for r in records), default=1))
    body.weights = extra["weights"]
    return body, records, extra["more"]


def _differences(found: Any, wanted: Mapping[str, Any]) -> list[str]:
    if not isinstance(found, Mapping):
        return [f"{found!r}"]
    names = {**wanted, **found}
    return [
        f"{name} {found.get(name)!r}, not {wanted.get(name)!r}"
        for name in names
        if found.get(name) != wanted.get(name)
    ]


def _set_owners(body: Body, owners: Mapping[str, Any], tasks: int) -> None:
    """Sets the owners of weights.

    Raises:
        CheckpointError: If these are not the owners of this body's weights.
    """
    if {*owners} != {*body.shared}:
        raise CheckpointError("the file has the owners of other weights")
    for name, slot in body.shared.items():
        own = owners[name]
        fits = isinstance(own, Tensor) and own.shape == slot.tensor.shape
        if not fits or own.dtype not in {torch.uint8, torch.int16}:
            raise CheckpointError(f"the file has no owners for the weights of {name}")
        if own.numel() and not 0 <= int(own.min()) <= int(own.max()) <= tasks:
            raise CheckpointError(f"the file has weights of {name} that no task owns")
        body.owners[name] = own.to(slot.tensor.device)
