"""Saving a grown model and its training, to go on as if it had never stopped."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from splitgrow.checkpoints.contents import (
    MODEL,
    Contents,
    Tensors,
    file_parts_of,
    form_of,
    stored_tensors_of,
)
from splitgrow.checkpoints.training import (
    random_states,
    saved_optimizer,
    saved_scheduler,
    schedulers_of,
)
from splitgrow.checkpoints.writing import write_archive
from splitgrow.errors import CheckpointError
from splitgrow.growth.growable_class import original_class
from splitgrow.growth.history import History, check_structure
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.journal import journal_of
from splitgrow.growth.journal.state_dict import has_extra_state
from splitgrow.growth.optimizers import optimizers_of
from splitgrow.layers.execution import execution_mode
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.json_records import written
from splitgrow.utils.json_trees import Writer
from splitgrow.utils.schedulers import SavedSchedulers

CONTENTS = "splitgrow"
"""Where the metadata of a file has the contents."""


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    scheduler: SavedSchedulers | None = None,
    extra: Any = None,
    keep: int = 1,
    shard_bytes: int = 5_000_000_000,
) -> None:
    """Saves a growable model and its training to a file that `load` goes on from, bit for bit.

    The file is safetensors', without pickle: the tensors, and as JSON the model's history (the
    edits, generations, frozen and held parameters), the states of optimizers, schedulers and
    random number generators, and how layers run. Gradients are not saved: save between the
    optimizer's step and the next backward pass.

    It is written aside, down to the disk, and takes its name in the end. So at any moment, `path`
    is the old file or the new one, whole.

    Args:
        model: A growable model, grown or not.
        path: The file.
        optimizer: One or several optimizers. Parameters in them that are not the model's keep their
            state; their values are for you to save.
        scheduler: One or several schedulers, or other things with state_dict and load_state_dict: a
            `FadeSchedule`, a GradScaler.
        extra: Anything else, of plain data and tensors: an epoch, a generator's state. `load`
            returns it.
        keep: How many checkpoints stay: with 3, those that were at `path` before become
            ``name.1.safetensors`` and ``name.2.safetensors``.
        shard_bytes: The size of a file. Tensors of more go to further files beside it.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If `keep` or `shard_bytes` is not positive.
        CheckpointError: If something cannot be saved, or the file not be written. A file that was
            there is untouched then.
        StructureChangedError: If the model was changed by hand since it was analysed.
        SplitGrowError: If the model was never made growable, or inside ``with model.at(...)``.

    Example:
        >>> import tempfile, torch, splitgrow
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "run.safetensors"
        >>> def network():
        ...     return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> model = splitgrow.growable(network(), torch.ones(1, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> edit = model.expand_layer("0", 2, optimizer=optimizer)
        >>> splitgrow.save(model, path, optimizer=optimizer, extra={"epoch": 3})
        >>> again = network()
        >>> resumed = torch.optim.SGD(again.parameters(), lr=0.1)
        >>> splitgrow.load(again, path, optimizer=resumed)
        {'epoch': 3}
        >>> torch.equal(again(torch.ones(1, 2)), model(torch.ones(1, 2)))
        True
    """
    history = history_of(model)
    history.refuse_while_viewing("save the model")
    for name, number in (("keep", keep), ("shard_bytes", shard_bytes)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} must be an int, got {number!r}")
        if number < 1:
            raise ValueError(f"{name} (={number}) must be at least 1")
    optimizers, schedulers = optimizers_of(optimizer), schedulers_of(scheduler)
    target = Path(os.fspath(path))
    check_structure(model, history)
    writer, found = Writer(), stored_tensors_of(model)
    try:
        names = {id(tensor): name for name, tensor in found.tensors.items()}
        contents = Contents(
            optimizers=tuple(
                saved_optimizer(item, names, writer, f"optimizer{index}")
                for index, item in enumerate(optimizers)
            ),
            schedulers=tuple(
                saved_scheduler(item, writer, f"scheduler{index}")
                for index, item in enumerate(schedulers)
            ),
            extra=writer.written(extra, "extra"),
            **_of_model(model, history, found, writer),
        )
        text = json.dumps(written(contents))
    except RecursionError as error:
        raise CheckpointError("the data to save is nested too deep, or holds itself") from error
    tensors = {MODEL + name: tensor for name, tensor in found.tensors.items()}
    write_archive(
        target, {**tensors, **writer.tensors}, {CONTENTS: text}, keep=keep, largest=shard_bytes
    )


def _of_model(model: nn.Module, history: History, found: Tensors, writer: Writer) -> dict[str, Any]:
    """The saved data of a model and of its process."""
    return {
        "journal": journal_of(model, history),
        "type": original_class(model).__qualname__,
        "parts": file_parts_of(model, history),
        "ties": found.ties,
        "own": found.own,
        "last": found.last,
        "states": {
            path: writer.written(module.get_extra_state(), f"state.{path}")
            for path, module in model.named_modules()
            if has_extra_state(module)
        },
        "inputs": _inputs(history.inputs, writer, "inputs"),
        "narrower": tuple(
            (edit, _inputs(inputs, writer, f"inputs{edit}")) for edit, inputs in history.narrower
        ),
        "random": writer.written(random_states(), "random"),
        "execution": execution_mode(),
        "torch": torch.__version__,
        "splitgrow": _version(),
    }


def _inputs(inputs: ExampleCall, writer: Writer, where: str) -> Any:
    """Example inputs as a tree, in the form that `call_from` reads; None if no plain data."""
    tree = form_of(inputs)
    trial = Writer()
    try:
        trial.written(tree, where)
    except CheckpointError:
        return None
    return writer.written(tree, where)


def _version() -> str:
    try:
        return importlib.metadata.version("splitgrow")
    except importlib.metadata.PackageNotFoundError:
        return ""
