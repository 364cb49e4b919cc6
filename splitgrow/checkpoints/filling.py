"""Giving a model the tensors of a checkpoint, once it has their shapes."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.checkpoints.archives import Archive
from splitgrow.checkpoints.contents import MODEL, Contents, Tensors, stored_tensors_of
from splitgrow.errors import CheckpointError
from splitgrow.growth.history import structure
from splitgrow.growth.journal.materialize import Devices, fill_meta_
from splitgrow.growth.journal.state_dict import has_extra_state
from splitgrow.layers.weight_views import CHANNELS_LAST
from splitgrow.progressive.halves import ProgressiveHalf
from splitgrow.utils.json_trees import read_tree
from splitgrow.utils.rollback import Undo


def reach_levels_(model: nn.Module, archive: Archive, undo: Undo) -> None:
    """Grows progressive networks to the level that was saved.

    Raises:
        CheckpointError: If they cannot have it.
    """
    for path, module in [*model.named_modules()]:
        name = f"{MODEL}{path}.reached" if path else f"{MODEL}reached"
        stored = archive.stored(name)
        if not isinstance(module, ProgressiveHalf) or stored is None:
            continue
        if stored.dtype != torch.int64 or stored.shape != (2,):
            raise CheckpointError(f"`{path}.reached` of the file is no level")
        level, fading = archive.tensor(name).tolist()
        try:
            if (level, fading) != tuple(module.reached.tolist()):
                module.become(level, fading=bool(fading), undo=undo)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(str(error)) from error


def fill_(
    model: nn.Module,
    archive: Archive,
    contents: Contents,
    undo: Undo,
    *,
    device: torch.device,
    places: Devices,
) -> None:
    """Gives the model's tensors the values of the file's.

    Args:
        model: The model.
        archive: The file.
        contents: Its content besides tensors.
        undo: Takes it back.
        device: The device of a model that has no values anywhere.
        places: The devices of modules that had values before the edits.

    Raises:
        CheckpointError: If one is missing, or is of another shape or dtype, or there is one more.
    """
    found = stored_tensors_of(model)
    _check_ties(found.ties, contents.ties)
    filled = [*_filled(found, archive, contents.own, places)]
    names = {id(tensor): name for name, tensor in found.tensors.items()}
    last = frozenset(contents.last)

    def made(name: str, tensor: Tensor, there: torch.device) -> Tensor:
        value = archive.tensor(MODEL + names[id(tensor)]).to(there)
        if name not in last or tensor.dim() not in CHANNELS_LAST:
            return value
        return value.contiguous(memory_format=CHANNELS_LAST[tensor.dim()])

    fill_meta_(model, made, undo, None if filled or places else device, places)
    with torch.no_grad():
        for tensor in filled:
            undo.on_failure(partial(_put_back, tensor, tensor.detach().clone()))
            tensor.copy_(archive.tensor(MODEL + names[id(tensor)]))


def _filled(
    found: Tensors, archive: Archive, passed_over: Container[str], places: Devices
) -> Iterator[Tensor]:
    """The tensors with values that get those of the file; all are checked.

    Args:
        found: The model's tensors. Buffers that it makes itself are of whichever shape it wants.
        archive: The file.
        passed_over: The names of those that the saved model made itself, and this one need not.
        places: The modules that had values before the edits, whose dtypes count.

    Raises:
        CheckpointError: If one is missing, or is of another shape or dtype, or there is one more.
    """
    for name in archive.table:
        own = name.removeprefix(MODEL)
        if name.startswith(MODEL) and own not in found.tensors and own not in passed_over:
            raise CheckpointError(f"the saved model has a tensor `{own}`, this model has none")
    for name, tensor in found.tensors.items():
        stored = archive.stored(MODEL + name)
        if stored is None or stored.shape != tuple(tensor.shape):
            if name in found.own and not tensor.is_meta:
                continue
            shape = "missing" if stored is None else str(stored.shape)
            raise CheckpointError(
                f"`{name}` is {shape} in the file, {tuple(tensor.shape)} in this model"
            )
        new = tensor.is_meta and name.rpartition(".")[0] not in places
        if new and _counts(stored.dtype) == _counts(tensor.dtype):
            continue
        if stored.dtype != tensor.dtype:
            raise CheckpointError(
                f"`{name}` is {stored.dtype} in the file, {tensor.dtype} in this model; convert "
                f"the model first, with model.to({stored.dtype})"
            )
        if not tensor.is_meta:
            yield tensor


def _counts(dtype: torch.dtype) -> bool:
    """Whether a dtype is one of whole numbers."""
    return not dtype.is_floating_point and not dtype.is_complex


@torch.no_grad()
def _put_back(tensor: Tensor, value: Tensor) -> None:
    tensor.copy_(value)


def _check_ties(here: Mapping[str, str], there: Mapping[str, str]) -> None:
    for name in {**here, **there}:
        if here.get(name) != there.get(name):
            other = here.get(name) or there.get(name)
            where = ("this model", "the saved one")
            one, two = where if name in here else where[::-1]
            raise CheckpointError(f"`{name}` and `{other}` are one in {one}, but not in {two}")


def set_extra_states_(model: nn.Module, contents: Contents, archive: Archive, undo: Undo) -> None:
    """Gives modules their extra states of the state_dict.

    Raises:
        CheckpointError: If one is not there, or does not take it.
        MemoryError: If there is too little memory, which says nothing of the file.
    """
    modules = structure(model)
    for path, tree in contents.states.items():
        module: Any = modules.get(path)
        if module is None or not has_extra_state(module):
            raise CheckpointError(f"the saved model has an extra state at `{path}`, this has none")
        undo.on_failure(partial(module.set_extra_state, module.get_extra_state()))
        try:
            module.set_extra_state(read_tree(tree, archive.take))
        except MemoryError:
            raise
        except Exception as error:
            raise CheckpointError(f"`{path}` does not take its extra state: {error}") from error
