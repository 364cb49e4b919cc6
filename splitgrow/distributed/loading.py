"""Loading a checkpoint of several processes, in any number of processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.optim import Optimizer

from splitgrow.checkpoints.contents import MODEL, check_past, check_written, stored_tensors_of
from splitgrow.checkpoints.training import (
    SavedOptimizer,
    check_types,
    restore_optimizer_,
    restore_scheduler_,
    schedulers_of,
    set_random_states_,
)
from splitgrow.distributed.agreement import Agreement
from splitgrow.distributed.carrying import TIMEOUT, Wrapped, group_of, picture_of, plain_of
from splitgrow.distributed.storing import Manifest, opened_manifest
from splitgrow.errors import CheckpointError
from splitgrow.growth.history import check_structure, keep_
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.journal import Journal, states_of
from splitgrow.growth.journal.state_dict import common_edits, follow_
from splitgrow.growth.optimizers import optimizers_of
from splitgrow.utils.json_trees import read_tree
from splitgrow.utils.rollback import Undo, all_or_nothing
from splitgrow.utils.schedulers import SavedSchedulers
from splitgrow.utils.wrappers import wrapper_told


def load(
    wrapped: nn.Module,
    directory: str | os.PathLike[str],
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    scheduler: SavedSchedulers | None = None,
    modules: Mapping[str, nn.Module] | None = None,
    training: bool = True,
    timeout: float = TIMEOUT,
) -> Any:
    """Loads a checkpoint by `save`, in as many processes as there are now, to resume training.

    The model may be wrapped in another way than before: every process reads the shards that it
    holds now. The recorded edits are repeated. Then tensors, optimizers, schedulers and the frozen
    state come back, bit for bit.

    Load only checkpoints that you trust: torch.distributed.checkpoint unpickles their metadata.

    Args:
        wrapped: As in `expand_layer`: a fresh model, made growable and wrapped as you want it to
            be, or the one that was saved.
        directory: The directory that `save` wrote to.
        optimizer: The optimizers that were saved, of the same types, in the same order, made of the
            fresh model's parameters. None to ignore their saved state.
        scheduler: The schedulers that were saved, likewise.
        modules: As in `splitgrow.load`: modules that were given to `insert_layer` and that a file
            cannot describe, by the path of the insertion.
        training: Whether the random states come back, too. Each rank has its own; ranks that there
            were not when it was saved keep theirs.
        timeout: Seconds to wait for the other processes, at each step.

    Returns:
        The `extra` that was given to `save`.

    Raises:
        TypeError: If an argument is of another type.
        CheckpointError: If there is no checkpoint, or it is damaged, or does not fit, the same in
            every process.
        DistributedError: In every process, if one failed, differs or did not come.

    In all these cases model, wrapper, optimizer and scheduler are as before, in every process.

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
    trained = optimizers_of(optimizer), schedulers_of(scheduler)
    source = Path(os.fspath(directory)).absolute()
    agreement = Agreement(group_of(wrapped), "load", timeout)

    def begin() -> tuple[_Loading, Mapping[str, str]]:
        held = Wrapped(wrapped, [])
        held.refuse_untold()
        held.refuse_more("loaded")
        loading = _Loading(held, _Source(source), *trained)
        rank = agreement.rank if training else None
        loading.check(rank)
        return loading, {"checkpoint": loading.text, **picture_of(held, trained[0])}

    loading = agreement.attempt("reading the checkpoint", begin)
    held = loading.held

    @all_or_nothing
    def carry_out(undo: Undo) -> Any:
        undo.on_failure(held.restore)
        agreement.attempt("doing the edits again", lambda: loading.grow(undo, modules or {}))
        held.shared = True
        agreement.all_do("sharding what is new", held.settle)
        agreement.all_do("making room for the tensors", loading.make_room)
        agreement.all_do("reading the tensors", lambda: loading.read(agreement.group))
        return agreement.all_do("giving them out", lambda: loading.give_out(undo))

    extra = carry_out()
    loading.fill()
    return extra


class _Loading:
    """The share of one process in loading.

    Args:
        held: The model, as this process holds it.
        source: The checkpoint.
        optimizers: The optimizers that get their states.
        schedulers: The schedulers that get theirs.

    Attributes:
        held: The model, as this process holds it.
        text: The manifest of the checkpoint, as it is written.
    """

    def __init__(
        self, held: Wrapped, source: _Source, optimizers: list[Any], schedulers: list[Any]
    ) -> None:
        self.held, self.text = held, source.text
        self._source, self._manifest = source, source.manifest
        self._optimizers, self._schedulers = optimizers, schedulers
        self._before = list(held.model.parameters())
        self._journal = Journal()
        self._random: object = None
        self._targets: dict[str, Tensor] = {}
        self._others: dict[str, Tensor] = {}

    def check(self, rank: int | None) -> None:
        """Makes sure that the checkpoint fits.

        Args:
            rank: The rank whose random states come back; None for none.

        Raises:
            CheckpointError: If it does not.
        """
        manifest = self._manifest
        self._journal = _checked(self.held.model, manifest)
        check_types("optimizer", manifest.optimizers, self._optimizers)
        check_types("scheduler", manifest.schedulers, self._schedulers)
        if rank is not None and rank < len(manifest.random):
            self._random = manifest.random[rank]

    def grow(self, undo: Undo, modules: Mapping[str, nn.Module]) -> tuple[None, Mapping[str, str]]:
        """Does the edits again."""
        model, journal = self.held.model, self._journal
        history = history_of(model)
        # Its layers are looked at anew then, which runs the model on its example inputs.
        self.held.open(values=len(history.edits) < len(journal.edits))
        keep_(history, undo)
        with undo.gathers(), wrapper_told():
            follow_(model, journal, self._source.shapes(MODEL), "", undo, modules)
        return None, picture_of(self.held, [])

    def make_room(self) -> None:
        """Makes tensors to read into, spread as the model's are now.

        Raises:
            CheckpointError: If the model's are of other dtypes.
        """
        found = stored_tensors_of(self.held.model).tensors
        self._source.check_dtypes(found)
        self._targets = {name: torch.empty_like(t.detach()) for name, t in found.items()}
        saved = self._manifest.optimizers if self._optimizers else ()
        self._others = self._source.targets(self._named(), saved, self._random)

    def _named(self) -> dict[str, nn.Parameter]:
        return dict(self.held.model.named_parameters(remove_duplicate=False))

    def read(self, group: Any) -> None:
        """Reads this process's parts."""
        values = {MODEL + name: target for name, target in self._targets.items()}
        reader = FileSystemReader(self._source.path)
        everything = values | self._others
        state_dict_loader.load(everything, storage_reader=reader, process_group=group)

    def give_out(self, undo: Undo) -> Any:
        """Gives optimizers, schedulers and random number generators their states.

        Returns:
            The user's `extra`.
        """
        manifest, tensor = self._manifest, self._others.__getitem__
        extra = read_tree(manifest.extra, tensor)
        named = self._named()
        for item, saved in zip(self._optimizers, manifest.optimizers, strict=False):  # or none
            restore_optimizer_(item, saved, named, self._before, tensor, undo)
        for item, kept in zip(self._schedulers, manifest.schedulers, strict=False):
            restore_scheduler_(item, kept, tensor, undo)
        if self._random is not None:
            set_random_states_(read_tree(self._random, tensor), undo)
        return extra

    @torch.no_grad()
    def fill(self) -> None:
        """Gives the model its values, which nothing can keep from it any more."""
        for name, tensor in stored_tensors_of(self.held.model).tensors.items():
            tensor.copy_(self._targets[name])
        history = history_of(self.held.model)
        history.states = states_of(self.held.model, self._journal, {})


def _checked(model: nn.Module, manifest: Manifest) -> Journal:
    """The journal of a checkpoint, if it continues the model's edits.

    Raises:
        CheckpointError: If it does not.
    """
    history = history_of(model)
    history.refuse_while_viewing("load a checkpoint")
    check_structure(model, history)
    journal = Journal.from_data(manifest.journal)
    check_past(history, journal)
    common_edits(history.edits, journal.edits)
    check_written(model, history, (manifest.parts, manifest.torch), journal)
    return journal


class _Source:
    """A checkpoint that is to be read.

    Attributes:
        path: Its directory.
        manifest: Its content besides tensors.
        text: That, as it is written.
    """

    def __init__(self, directory: Path) -> None:
        self.path, self.manifest, self.text = opened_manifest(directory)
        known = FileSystemReader(self.path).read_metadata().state_dict_metadata
        self._known = {k: v for k, v in known.items() if isinstance(v, TensorStorageMetadata)}

    def shapes(self, prefix: str) -> dict[str, Any]:
        """Tensors without values, of the shapes and types of those whose names begin so."""
        return {
            name.removeprefix(prefix): torch.empty(
                known.size, dtype=known.properties.dtype, device="meta"
            )
            for name, known in self._known.items()
            if name.startswith(prefix)
        }

    def check_dtypes(self, tensors: Mapping[str, Tensor]) -> None:
        """Makes sure that reading into a model's tensors converts none of them.

        Raises:
            CheckpointError: If it would.
        """
        for name, tensor in tensors.items():
            known = self._known.get(MODEL + name)
            if known is not None and known.properties.dtype != tensor.dtype:
                raise CheckpointError(
                    f"`{name}` is {known.properties.dtype} in the checkpoint, {tensor.dtype} in "
                    f"this model; convert the model first, with model.to({known.properties.dtype})"
                )

    def targets(
        self,
        named: Mapping[str, nn.Parameter],
        optimizers: tuple[SavedOptimizer, ...],
        random: object,
    ) -> dict[str, Tensor]:
        """Tensors for all that is not the model's to be read into.

        Args:
            named: The model's parameters, as which their optimizer states are spread.
            optimizers: The optimizers whose states are wanted.
            random: The random states that are wanted, as a tree.
        """
        targets: dict[str, Tensor] = {}

        def into(like: Tensor | None) -> Callable[[str], Tensor]:
            def make(name: str) -> Tensor:
                known = self._known.get(name)
                if known is None:
                    raise CheckpointError(f"the checkpoint has no tensor `{name}`")
                dtype = known.properties.dtype
                if like is not None and like.shape == known.size:
                    targets[name] = torch.empty_like(like.detach(), dtype=dtype)
                else:
                    targets[name] = torch.empty(known.size, dtype=dtype)
                return targets[name]

            return make

        for optimizer in optimizers:
            for state in optimizer.states:
                read_tree(state.state, into(named.get(_name_at(optimizer, state.place) or "")))
            for group in optimizer.groups:
                read_tree(group.options, into(None), _Anything())
        for scheduler in self.manifest.schedulers:
            read_tree(scheduler.state, into(None), _Anything())
        read_tree(self.manifest.extra, into(None))
        read_tree(random, into(None))
        return targets


class _Anything:
    """Stands for values that were left out when a tree was written."""

    def __getitem__(self, key: object) -> _Anything:
        return self


def _name_at(optimizer: SavedOptimizer, place: tuple[int, int]) -> str | None:
    group, index = place
    if not (
        0 <= group < len(optimizer.groups) and 0 <= index < len(optimizer.groups[group].params)
    ):
        raise CheckpointError(f"the saved optimizer has state of a parameter at {place}")
    return optimizer.groups[group].params[index]
