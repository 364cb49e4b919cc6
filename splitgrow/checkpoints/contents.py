"""The content of a checkpoint besides its tensors; and the first difference of two models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.checkpoints.training import SavedOptimizer, SavedScheduler
from splitgrow.errors import CheckpointError
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import History
from splitgrow.growth.journal import Journal
from splitgrow.growth.journal.materialize import empty_slots_of
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import SplitTensor
from splitgrow.layers.weight_views import memory_format_of
from splitgrow.utils.example_call import ExampleCall, example_call
from splitgrow.utils.json_records import Record, read_record
from splitgrow.utils.wrappers import plain_type

CHECKPOINT_VERSION = 1
MODEL = "model."
"""How the names of a model's tensors begin."""


@dataclass(frozen=True)
class FilePart:
    """A module of a model as it was written.

    Attributes:
        path: Its path.
        type: The name of its type.
        settings: Its numbers, as it prints them, if it is one of torch's own.
    """

    path: str
    type: str
    settings: str


@dataclass(frozen=True)
class Contents:
    """All that a checkpoint holds besides tensors.

    Attributes:
        journal: The model's journal, as JSON makes it.
        type: The name of the model's class.
        parts: The modules of the model as it was written.
        ties: Other names of tensors that have several.
        own: The names of buffers that the model makes itself, which are not in its state_dict.
        last: The names of tensors whose channels come last in memory.
        states: The extra states of modules in the state_dict, as trees, by path.
        inputs: The example inputs, in the form of `form_of`; None if they are no plain data.
        narrower: Those of earlier times, with the edit up to which they fit.
        optimizers: The optimizers.
        schedulers: The schedulers.
        random: The states of the random number generators, as a tree.
        execution: How grown layers run.
        extra: The user's additions, as a tree.
        torch: The version of torch.
        splitgrow: The version of splitgrow.
        version: The version of the format.
    """

    journal: object
    type: str
    parts: tuple[FilePart, ...]
    ties: Mapping[str, str]
    own: tuple[str, ...]
    last: tuple[str, ...]
    states: Mapping[str, object]
    inputs: object
    narrower: tuple[tuple[int, object], ...]
    optimizers: tuple[SavedOptimizer, ...]
    schedulers: tuple[SavedScheduler, ...]
    random: object
    execution: str
    extra: object
    torch: str
    splitgrow: str
    version: int = field(default=CHECKPOINT_VERSION)


@dataclass(frozen=True)
class Tensors:
    """The tensors of a model.

    Attributes:
        tensors: Each of them, by its first name.
        ties: Other names of tensors that have several, with the first.
        own: The names of buffers that the model makes itself.
        last: The names of those whose channels come last in memory.
    """

    tensors: Mapping[str, Tensor]
    ties: Mapping[str, str]
    own: tuple[str, ...]
    last: tuple[str, ...]


def stored_tensors_of(model: nn.Module) -> Tensors:
    """The parameters and buffers of a model."""
    tensors: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[int, str] = {}
    own, last = [], []
    for name, (module, attribute), tensor in empty_slots_of(model):
        if id(tensor) in first:
            ties[name] = first[id(tensor)]
            continue
        first[id(tensor)] = name
        tensors[name] = tensor
        if attribute in module._non_persistent_buffers_set:  # noqa: SLF001
            own.append(name)
        if memory_format_of(tensor) is not torch.contiguous_format:
            last.append(name)
    return Tensors(tensors, ties, tuple(own), tuple(last))


def file_parts_of(model: nn.Module, history: History | None) -> tuple[FilePart, ...]:
    """The modules of a model as it was written, without later growth."""
    numbered = other_numbers(history.edits) if history else frozenset()
    return tuple(
        # Without the class that fully_shard gives a module.
        FilePart(
            path, plain_type(type(module)).__name__, "" if path in numbered else _settings(module)
        )
        for path, module in _as_written(model, "", set())
    )


def other_numbers(edits: Iterable[Edit]) -> frozenset[str]:
    """The paths of modules that have other numbers than they were written with."""
    edits = list(edits)
    changed = {number.module for edit in edits for number in edit.numbers}
    changed |= {name for edit in edits for name in edit.absorbed}
    changed |= {item.name for edit in edits for item in edit.removed}
    return frozenset(changed)


def _as_written(
    module: nn.Module, path: str, seen: set[nn.Module]
) -> Iterator[tuple[str, nn.Module]]:
    """A module and those in it, each once, without splitgrow's modules in between."""
    if isinstance(module, SplitTensor):  # a tensor of its module, which is no module there
        return
    if isinstance(module, (InsertionWrapper, SplitLayer)):
        inside = module.wrapped if isinstance(module, InsertionWrapper) else module.original
        yield from _as_written(inside, path, seen)
    elif module not in seen:
        seen.add(module)
        yield path, module
        for name, child in module.named_children():
            yield from _as_written(child, f"{path}.{name}" if path else name, seen)


def _settings(layer: nn.Module) -> str:
    """The numbers of one of torch's layers, but for those that may change from run to run."""
    source = plain_type(type(layer)).__module__
    if not source.startswith("torch.nn.") or source == "torch.nn.modules.dropout":
        return ""
    if isinstance(layer, (nn.ParameterList, nn.ParameterDict)):  # its tensors may have grown
        return ""
    return re.sub(r"(, )?(inplace(=True)?|momentum=[^,)]+)", "", layer.extra_repr())


def form_of(call: ExampleCall) -> Any:
    """An example call as a tree: the positional arguments, with keyword arguments as a dict."""
    return {"args": call.args, "kwargs": call.kwargs} if call.kwargs else call.args


def call_from(tree: object) -> ExampleCall:
    """The example call of which `form_of` makes that tree.

    Raises:
        CheckpointError: If it makes no such tree.
    """
    args, kwargs = tree, {}
    if isinstance(tree, dict) and tree.keys() == {"args", "kwargs"}:
        args, kwargs = tree["args"], tree["kwargs"]
    if not isinstance(args, tuple) or type(kwargs) is not dict:
        raise CheckpointError("the example inputs of the file are none")
    try:
        return example_call(args, kwargs)
    except TypeError as error:
        raise CheckpointError(f"the example inputs of the file are none: {error}") from error


def read_versioned(kind: type[Record], text: str, version: int, path: Path) -> Record:
    """The content of a checkpoint besides tensors, from its JSON.

    Raises:
        CheckpointError: If it is of another version, or cannot be read.
    """
    try:
        data = json.loads(text)
        found = data.get("version") if isinstance(data, dict) else None
        if found != version:
            raise CheckpointError(
                f"{path} is of version {found!r}; this splitgrow reads version {version}"
            )
        return read_record(kind, data, "the checkpoint")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def check_past(history: History | None, journal: Journal) -> None:
    """Makes sure that a model has not done more edits than the saved one.

    Raises:
        CheckpointError: If it has.
    """
    if history is not None and len(history.edits) > len(journal.edits):
        raise CheckpointError(
            f"this model has done {len(history.edits)} edits, the saved one {len(journal.edits)}; "
            f"load into a fresh model"
        )


def check_written(
    model: nn.Module,
    history: History | None,
    saved: tuple[tuple[FilePart, ...], str],
    journal: Journal,
) -> None:
    """Makes sure that a model was written as the saved one was.

    Args:
        model: The model.
        history: Its history, if it is growable.
        saved: The modules of the one that was saved, and the version of torch that it was saved by.
        journal: The journal of that.

    Raises:
        CheckpointError: If it was not; the first difference is named.
    """
    numbered = other_numbers(journal.edits)
    gone = [item for edit in journal.edits for item in edit.removed_layers if not item.edit]

    def kept(parts: tuple[FilePart, ...]) -> tuple[FilePart, ...]:
        return tuple(part for part in parts if not any(item.has(part.path) for item in gone))

    # Other versions may print a layer's numbers otherwise.
    same = torch.__version__.split(".")[:2] == saved[1].split(".")[:2]
    own = kept(file_parts_of(model, history))
    check_parts(kept(saved[0]), own, settings=same, fixed=numbered)


def check_parts(
    saved: tuple[FilePart, ...], own: tuple[FilePart, ...], *, settings: bool, fixed: frozenset[str]
) -> None:
    """Makes sure that two models were written alike.

    Args:
        saved: The modules of the one that was saved.
        own: Those of the one that is there.
        settings: Whether the numbers of torch's layers count, too.
        fixed: The paths of modules whose numbers do not.

    Raises:
        CheckpointError: If they were not; the first difference is named.
    """
    for there, here in zip_longest(saved, own):
        if there is None:
            raise CheckpointError(f"this model has `{here.path}` ({here.type}), the saved has not")
        if here is None:
            raise CheckpointError(
                f"the saved model has `{there.path}` ({there.type}), this has not"
            )
        if there.path != here.path:
            raise CheckpointError(
                f"the saved model has `{there.path}` ({there.type}) where this one has "
                f"`{here.path}` ({here.type})"
            )
        same = there.type == here.type or not there.path  # the model's own class may be renamed
        counts = settings and there.path not in fixed and there.settings and here.settings
        if not same or (counts and there.settings != here.settings):
            raise CheckpointError(
                f"`{there.path}` is {there.type}({there.settings}) in the saved model, "
                f"{here.type}({here.settings}) in this one"
            )
