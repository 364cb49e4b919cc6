"""Loading a checkpoint into a fresh model: all of it, or nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn
from torch.optim import Optimizer

from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.analysis.unsupported_models import refuse_unsupported
from splitgrow.checkpoints.archives import Archive
from splitgrow.checkpoints.contents import (
    CHECKPOINT_VERSION,
    Contents,
    call_from,
    check_past,
    check_written,
    read_versioned,
)
from splitgrow.checkpoints.filling import fill_, reach_levels_, set_extra_states_
from splitgrow.checkpoints.saving import CONTENTS
from splitgrow.checkpoints.training import (
    check_types,
    restore_optimizer_,
    restore_scheduler_,
    schedulers_of,
    set_random_states_,
)
from splitgrow.errors import CheckpointError
from splitgrow.growable import adopt_
from splitgrow.growth.growing import tell_
from splitgrow.growth.history import History, check_structure, grown_elsewhere
from splitgrow.growth.history_lookup import HISTORY
from splitgrow.growth.journal import Journal, rebuild_, restore_, widen_inputs_
from splitgrow.growth.journal.state_dict import common_edits
from splitgrow.growth.optimizers import optimizers_of
from splitgrow.layers.execution import Mode, set_execution_mode_
from splitgrow.utils.example_call import ExampleCall, ExampleInputs, example_call
from splitgrow.utils.json_trees import read_tree
from splitgrow.utils.model_lock import ModelLock, change_alone, refuse_inside_forward
from splitgrow.utils.rollback import Undo
from splitgrow.utils.schedulers import SavedSchedulers
from splitgrow.utils.wrappers import refuse_wrapped


def load(  # noqa: PLR0913
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    scheduler: SavedSchedulers | None = None,
    example_inputs: ExampleInputs | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    modules: Mapping[str, nn.Module] | None = None,
    device: str | torch.device | None = None,
    strict: bool = True,
    training: bool = True,
) -> Any:
    """Loads a file by `save` into a fresh model, which is growable then, to resume training.

    The recorded edits are repeated. Then the tensors come back, and the rest of the file: frozen
    and held parameters, the generations, optimizers, schedulers, random states and how layers run.
    On the CPU, with as many threads, training goes on bit for bit as if it had never stopped.

    The file is not trusted: it is compared with its checksum, its edits are compared with the model
    one by one, nothing in it is executed, and tensors of other shapes are refused. After a failure,
    the model, the optimizers and the schedulers are as before.

    Args:
        model: A fresh instance of the model's class; it may have been made growable, and may have
            grown by the first of the edits. Parameters on the meta device are made as they are
            read, so that no second copy is needed; of others there is one until all is done.
        path: The file.
        optimizer: The optimizers that were saved, of the same types, in the same order: made of the
            fresh model's parameters, or of any. Their groups become those that were saved. None to
            ignore their saved state.
        scheduler: The schedulers that were saved, likewise.
        example_inputs: As in `growable`, for the model as it is. None for those in the file, which
            has them unless they are no plain data.
        example_kwargs: As in `growable`, likewise.
        modules: Modules that were given to `insert_layer` and that a file cannot describe, once
            more, by the path of the insertion, such as ``"block.inserted2"``.
        device: Where parameters on the meta device go; the CPU by default.
        strict: Whether the types of modules, and the settings of torch's own, must be those that
            were saved, rather than only the shapes of tensors. Rates of dropout and momenta of
            norms may differ in any case.
        training: Whether the state of the whole process comes back, too: the random states, and how
            layers run.

    Returns:
        The `extra` that was given to `save`.

    Raises:
        TypeError: If an argument is of another type.
        CheckpointError: If the file is damaged or hostile, or does not fit the model, the
            optimizers or the schedulers; the first difference is named.
        UnsupportedModelError: If the model is wrapped, compiled, scripted or uninitialised.
        SplitGrowError: If this is called inside ``with model.at(...)``.

    Example:
        >>> import tempfile, torch, splitgrow
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp()) / "run.safetensors"
        >>> def network():
        ...     return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> model = splitgrow.growable(network(), torch.ones(1, 2))
        >>> edit = model.expand_layer("0", 2)
        >>> splitgrow.save(model, path)
        >>> with torch.device("meta"):
        ...     fresh = network()
        >>> splitgrow.load(fresh, path)
        >>> fresh.layers[0].width, fresh.generation
        (5, 1)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    refuse_unsupported(model)
    optimizers, schedulers = optimizers_of(optimizer), schedulers_of(scheduler)
    given, inputs = _checked_modules(modules), _given(example_inputs, example_kwargs)
    old = _history(model)
    what, model_lock = "load a checkpoint", ModelLock() if old is None else old.model_lock
    model_lock.refuse_if_shown(what)
    refuse_inside_forward(model, what)
    with Archive(Path(os.fspath(path))) as archive:

        def load_(undo: Undo) -> Any:
            loading = _Loading(model, old, archive, undo)
            loading.check(optimizers, schedulers, strict=strict)
            extra = read_tree(loading.contents.extra, archive.take)
            loading.rebuild(given, inputs, model_lock, torch.device(device or "cpu"))
            loading.give(optimizers, schedulers, training=training)
            return extra

        return change_alone(model, model_lock, what, load_)


class _Loading:
    """The steps that load a file that was found whole.

    Args:
        model: The model.
        old: Its history, if it is growable.
        archive: The file.
        undo: Takes everything back.

    Attributes:
        contents: The content of the file besides tensors.
    """

    def __init__(self, model: nn.Module, old: History | None, archive: Archive, undo: Undo) -> None:
        self.contents = contents_of(archive)
        self._model, self._old, self._archive, self._undo = model, old, archive, undo
        self._before = list(model.parameters())
        self._journal = _journal(self.contents, archive)
        self._start = 0

    def check(
        self, optimizers: Sequence[object], schedulers: Sequence[object], *, strict: bool
    ) -> None:
        """Makes sure that the file is one of such a model, such optimizers and schedulers."""
        contents = self.contents
        check_past(self._old, self._journal)
        own = self._old.edits if self._old is not None else []
        self._start = common_edits(own, self._journal.edits)
        reach_levels_(self._model, self._archive, self._undo)
        if strict:
            saved = contents.parts, contents.torch
            check_written(self._model, self._old, saved, self._journal)
        check_types("optimizer", contents.optimizers, optimizers)
        check_types("scheduler", contents.schedulers, schedulers)

    def rebuild(
        self,
        given: Mapping[str, nn.Module],
        inputs: ExampleCall | None,
        model_lock: ModelLock,
        device: torch.device,
    ) -> None:
        """Does the edits, fills the tensors, and makes the model growable."""
        model, contents, journal, undo = self._model, self.contents, self._journal, self._undo
        start = self._start
        if journal.edits[start:]:
            refuse_wrapped(model, "load a model that has grown further")
        places = rebuild_(model, journal.edits[start:], given, undo)
        fill_(model, self._archive, contents, undo, device=device, places=places)
        set_extra_states_(model, contents, self._archive, undo)
        history = _new_history(model, self._old, contents, self._archive, inputs)
        history.model_lock = model_lock
        history.kin = self._old.kin if self._old is not None else history.kin
        if contents.inputs is None or inputs is not None:
            widen_inputs_(model, history, journal.edits[start:])
        restore_(model, history, journal, start, undo)
        adopt_(model, history, undo)

    def give(self, optimizers: Sequence[Any], schedulers: Sequence[Any], *, training: bool) -> None:
        """Gives optimizers, schedulers and the process their states."""
        contents, read, undo = self.contents, self._archive.take, self._undo
        named = dict(self._model.named_parameters(remove_duplicate=False))
        for item, saved in zip(optimizers, contents.optimizers, strict=False):  # or none is given
            restore_optimizer_(item, saved, named, self._before, read, undo)
        for item, kept in zip(schedulers, contents.schedulers, strict=False):
            restore_scheduler_(item, kept, read, undo)
        if training:
            set_execution_mode_(_mode(contents), undo)
            set_random_states_(read_tree(contents.random, read), undo)
        before = self._before
        tell_(self._model, "load", self._start, optimizers, undo, before=before, loaded=True)


def _checked_modules(modules: Mapping[str, nn.Module] | None) -> Mapping[str, nn.Module]:
    given = {} if modules is None else modules
    if not isinstance(given, Mapping) or not all(isinstance(m, nn.Module) for m in given.values()):
        raise TypeError(f"modules map paths of insertions to modules, got {modules!r}")
    return given


def _given(example_inputs: object, example_kwargs: object) -> ExampleCall | None:
    if example_inputs is None and example_kwargs is None:
        return None
    return example_call(() if example_inputs is None else example_inputs, example_kwargs)


def _history(model: nn.Module) -> History | None:
    """The model's history, if it is growable.

    Raises:
        CheckpointError: If layers of it grew as part of another model.
    """
    history: History | None = vars(model).get(HISTORY)
    if history is not None:
        history.refuse_while_viewing("load a checkpoint")
        check_structure(model, history)
    foreign = grown_elsewhere(model, history.edits if history is not None else ())
    if foreign:
        raise CheckpointError(f"{', '.join(foreign[:3])} grew elsewhere; load into a fresh model")
    return history


def contents_of(archive: Archive) -> Contents:
    """The content of a file besides tensors.

    Raises:
        CheckpointError: If it is of another version, or cannot be read.
    """
    return read_versioned(
        Contents, archive.metadata.get(CONTENTS, "null"), CHECKPOINT_VERSION, archive.path
    )


def _journal(contents: Contents, archive: Archive) -> Journal:
    journal = Journal.from_data(contents.journal)
    numbers = (n.value[1] - n.value[0] for edit in journal.edits for n in edit.numbers)
    added = max(sum(edit.parameters for edit in journal.edits), *numbers, 0)
    if added > archive.elements:
        raise CheckpointError(
            f"the journal adds {added:,} parameters, the file has {archive.elements:,} numbers"
        )
    return journal


def _new_history(
    model: nn.Module,
    old: History | None,
    contents: Contents,
    archive: Archive,
    given: ExampleCall | None,
) -> History:
    """A history with the example inputs: those that are given, or the file's if it has some.

    Raises:
        CheckpointError: If there are none anywhere, or those of the file are none.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def read(tree: object) -> ExampleCall:
        return call_from(read_tree(tree, archive.take)).map(lambda tensor: tensor.to(device))

    broken = old.broken if old is not None else {}
    history = History(ChannelGraph(), ExampleCall(), {}, broken=broken)
    if contents.inputs is not None and given is None:
        history.inputs = read(contents.inputs)
        history.narrower = tuple((e, read(t)) for e, t in contents.narrower if t is not None)
        return history
    if given is None and old is not None:
        given = old.inputs
    if given is None:
        raise CheckpointError("the file has no example inputs; give `example_inputs`")
    history.inputs = given
    history.narrower = old.narrower if old is not None else ()
    return history


def _mode(contents: Contents) -> Mode:
    if contents.execution not in get_args(Mode):
        raise CheckpointError(f"the file has the execution mode {contents.execution!r}")
    return contents.execution  # type: ignore[return-value]
