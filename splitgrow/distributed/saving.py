"""Saving models that several processes train, by torch.distributed.checkpoint.

Every process writes its own shards; the first one writes the tensors that all of them hold.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_saver
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.optim import Optimizer

from splitgrow.checkpoints.contents import MODEL, file_parts_of, stored_tensors_of
from splitgrow.checkpoints.training import (
    random_states,
    saved_optimizer,
    saved_scheduler,
    schedulers_of,
)
from splitgrow.distributed.agreement import Agreement
from splitgrow.distributed.carrying import TIMEOUT, Wrapped, group_of, picture_of, plain_of
from splitgrow.distributed.storing import commit, give_up, next_place, prepared
from splitgrow.distributed.units import is_spread
from splitgrow.errors import CheckpointError
from splitgrow.growth.history import check_structure
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.journal import journal_of
from splitgrow.growth.journal.state_dict import has_extra_state
from splitgrow.growth.optimizers import optimizers_of
from splitgrow.layers.execution import execution_mode
from splitgrow.utils.json_trees import Writer
from splitgrow.utils.schedulers import SavedSchedulers


def save(
    wrapped: nn.Module,
    directory: str | os.PathLike[str],
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    scheduler: SavedSchedulers | None = None,
    extra: Any = None,
    keep: int = 1,
    timeout: float = TIMEOUT,
) -> None:
    """Saves a model that several processes train, and its training, for any number of processes.

    Call it in every process, between the optimizer's step and the next backward pass. Every process
    writes its own shards, through torch.distributed.checkpoint; the first rank writes the tensors
    that all of them hold. The new checkpoint is written beside the last one and counts once all of
    it is on the disk. So `load` finds the last whole one, at any moment.

    Args:
        wrapped: As in `expand_layer`; all that is wrapped must be the growable model.
        directory: A directory that all processes see.
        optimizer: One or several optimizers of this process.
        scheduler: One or several schedulers, or other things with state_dict and load_state_dict.
        extra: Anything else, of plain data and tensors; the first rank's is saved.
        keep: How many checkpoints stay in the directory.
        timeout: Seconds to wait for the other processes, at each step.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If `keep` is not positive.
        CheckpointError: If something cannot be saved, the same in every process.
        DistributedError: In every process, if one failed, differs or did not come; the last
            checkpoint is untouched.

    Example:
        >>> import torch, splitgrow
        >>> from torch import distributed as dist, nn
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))  # the same in every process
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     splitgrow.distributed.save(net, folder, extra={"epoch": 3})
        ...     splitgrow.distributed.load(net, folder)
        {'epoch': 3}
        >>> dist.destroy_process_group()
    """
    plain_of(wrapped)
    optimizers, schedulers = optimizers_of(optimizer), schedulers_of(scheduler)
    if isinstance(keep, bool) or not isinstance(keep, int):
        raise TypeError(f"keep must be an int, got {keep!r}")
    if keep < 1:
        raise ValueError(f"keep (={keep}) must be at least 1")
    target = Path(os.fspath(directory)).absolute()
    agreement = Agreement(group_of(wrapped), "save", timeout)

    def describe() -> tuple[_Saving, Mapping[str, str]]:
        held = Wrapped(wrapped, [])
        held.refuse_more("saved")
        contents = _described(held.model, optimizers, schedulers, extra, agreement.rank)
        saving = _Saving(agreement, next_place(target), keep, *contents)
        return saving, {"place": str(saving.place), **picture_of(held, optimizers)}

    saving = agreement.attempt("describing the model to be saved", describe)
    try:
        agreement.all_do("making room", lambda: saving.prepare(target))
        agreement.all_do("writing", saving.write)
        agreement.all_do("finishing", saving.finish)
    except BaseException:
        saving.give_up()
        raise


class _Saving:
    """The share of one process in saving.

    Attributes:
        place: Where the checkpoint is written.
    """

    def __init__(
        self,
        agreement: Agreement,
        place: Path,
        keep: int,
        tensors: dict[str, Tensor],
        manifest: dict[str, Any],
        random: object,
    ) -> None:
        self.place = place
        self._agreement, self._keep = agreement, keep
        self._tensors, self._manifest, self._random = tensors, manifest, random

    def prepare(self, directory: Path) -> None:
        """Makes the place; the first process does."""
        if self._agreement.rank == 0:
            prepared(directory)

    def write(self) -> None:
        """Writes this process's tensors.

        Raises:
            CheckpointError: If the first process's place is not there.
        """
        if not self.place.is_dir():
            raise CheckpointError(f"{self.place} is not there: all processes must see it")
        group = self._agreement.group
        every: list[Any] = [None] * len(self._agreement.ranks)
        dist.all_gather_object(every, self._random, group=group)
        self._manifest["random"] = tuple(every)
        writer = FileSystemWriter(self.place, sync_files=True)
        state_dict_saver.save(self._tensors, storage_writer=writer, process_group=group)

    def finish(self) -> None:
        """Has the checkpoint count; the first process does."""
        if self._agreement.rank == 0:
            commit(self.place, self._manifest, self._keep)

    def give_up(self) -> None:
        """Removes the written files; the first process does."""
        if self._agreement.rank == 0:
            give_up(self.place)


def _described(
    model: nn.Module, optimizers: list[Any], schedulers: list[Any], extra: Any, rank: int
) -> tuple[dict[str, Tensor], dict[str, Any], object]:
    """The data that one process saves: its tensors, the manifest, and its random states.

    Raises:
        CheckpointError: If something cannot be saved.
    """
    history = history_of(model)
    history.refuse_while_viewing("save the model")
    check_structure(model, history)
    writer, own = Writer(), Writer()
    found = stored_tensors_of(model).tensors
    names = {id(tensor): name for name, tensor in found.items()}
    for path, module in model.named_modules():
        if has_extra_state(module):
            raise CheckpointError(
                f"`{path}` adds an extra state of its own to the state_dict, which checkpoints of "
                f"several processes do not hold yet"
            )
    for optimizer in optimizers:
        _refuse_other_layouts(optimizer, names)
    manifest = {
        "journal": journal_of(model, history),
        "parts": file_parts_of(model, history),
        "optimizers": tuple(
            saved_optimizer(item, names, writer, f"optimizer{index}")
            for index, item in enumerate(optimizers)
        ),
        "schedulers": tuple(
            saved_scheduler(item, writer, f"scheduler{index}")
            for index, item in enumerate(schedulers)
        ),
        "extra": writer.written(extra, "extra"),
        "execution": execution_mode(),
        "torch": torch.__version__,
    }
    random = own.written(random_states(), f"random.{rank}")
    tensors = {MODEL + name: tensor.detach() for name, tensor in found.items()} | writer.tensors
    if rank:  # of tensors that every process has, the first one's count
        tensors = {name: tensor for name, tensor in tensors.items() if is_spread(tensor)}
    return tensors | own.tensors, manifest, random


def _refuse_other_layouts(optimizer: Any, names: Mapping[int, str]) -> None:
    for parameter, state in optimizer.state.items():
        for key, value in state.items():
            if isinstance(value, Tensor) and is_spread(value) and value.shape != parameter.shape:
                raise CheckpointError(
                    f"`{key}` of `{names.get(id(parameter), '?')}` in {type(optimizer).__name__} "
                    f"is spread over the processes in another shape than its parameter"
                )
