"""Loading a checkpoint into a fresh model: all of it, or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from splitgrow.checkpoints.archives import Archive
from splitgrow.checkpoints.contents import (
    MODEL,
    VERSION,
    Contents,
    Tensors,
    check_parts,
    parts_of,
    tensors_of,
)
from splitgrow.checkpoints.saving import CONTENTS
from splitgrow.checkpoints.training import (
    check_types,
    optimizers_of,
    restore_optimizer_,
    restore_scheduler_,
    schedulers_of,
    set_random_states_,
)
from splitgrow.checkpoints.trees import read_tree
from splitgrow.errors import CheckpointError
from splitgrow.execution import Mode, set_execution_mode_
from splitgrow.graph import ChannelGraph
from splitgrow.growable import adopt_, refuse_unsupported
from splitgrow.handled import HISTORY
from splitgrow.history import History, check_structure, grown_elsewhere, structure
from splitgrow.journal import Journal, rebuild_, restore_, widen_inputs_
from splitgrow.journal.filling import fill_meta_
from splitgrow.journal.state_dicts import common_edits
from splitgrow.progressive.halves import ProgressiveHalf
from splitgrow.typed import read_record
from splitgrow.undo import Undo


def load(  # noqa: PLR0913
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    optimizer: object = None,
    scheduler: object = None,
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    modules: Mapping[str, nn.Module] | None = None,
    device: str | torch.device | None = None,
    strict: bool = True,
    training: bool = True,
) -> Any:
    """Loads what `save` has written into a fresh model, which is growable then, and goes on.

    The edits are done again as they are recorded, then the tensors come back, and all else that was
    saved: what is frozen and held, the generations, optimizers, schedulers, random states and how
    layers run. On the CPU, with as many threads, training goes on bit for bit as if it had never
    stopped.

    The file is not believed: it is compared with its checksum, its edits are held against the model
    one by one, nothing in it is executed, and what does not have the tensors' shapes is refused.
    Whatever fails, the model, the optimizers and the schedulers are as before.

    Args:
        model: A fresh instance of the model's class; it may have been made growable, and may have
            grown by the first of the edits. Parameters on the meta device are made as they are
            read, so that no second copy is needed; of others there is one until all is done.
        path: The file.
        optimizer: The optimizers that were saved, of the same types, in the same order: made of the
            fresh model's parameters, or of any. Their groups become those that were saved. None to
            leave what was saved of them aside.
        scheduler: The schedulers that were saved, likewise.
        example_inputs: As of `growable`. They are in the file, unless they are no plain data.
        modules: Modules that were given to `insert_layer` and that a file cannot describe, once
            more, by the path of the insertion, such as ``"block.inserted2"``.
        device: Where parameters on the meta device go; the CPU by default.
        strict: Whether the types of modules, and the settings of torch's own, must be those that
            were saved, rather than only the shapes of tensors. Rates of dropout and momenta of
            norms may differ in any case.
        training: Whether what concerns the whole process comes back, too: the random states, and
            how layers run.

    Returns:
        What was given to `save` as `extra`.

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
    given = _checked_modules(modules)
    old, before = _history(model), list(model.parameters())
    with Archive(Path(os.fspath(path))) as archive, Undo() as undo:
        contents = contents_of(archive)
        journal = _journal(contents, archive)
        _check_past(old, journal)
        _reach_levels_(model, archive, undo)
        if strict:
            _check_model(model, old, contents, journal)
        check_types("optimizer", contents.optimizers, optimizers)
        check_types("scheduler", contents.schedulers, schedulers)
        extra = read_tree(contents.extra, archive.take)
        start = common_edits(old.edits if old is not None else [], journal.edits)
        rebuild_(model, journal.edits[start:], given, undo)
        _fill_(model, archive, contents, undo, device=torch.device(device or "cpu"))
        _set_extra_states_(model, contents, archive, undo)
        history = _new_history(model, old, contents, archive, example_inputs)
        if contents.inputs is None:
            widen_inputs_(model, history, journal.edits[start:])
        restore_(model, history, journal, start, undo)
        adopt_(model, history, undo)
        named = dict(model.named_parameters(remove_duplicate=False))
        for item, saved in zip(optimizers, contents.optimizers, strict=False):  # or none is given
            restore_optimizer_(item, saved, named, before, archive.take, undo)
        for item, kept in zip(schedulers, contents.schedulers, strict=False):
            restore_scheduler_(item, kept, archive.take, undo)
        if training:
            set_execution_mode_(_mode(contents), undo)
            set_random_states_(read_tree(contents.random, archive.take), undo)
    return extra


def _checked_modules(modules: Mapping[str, nn.Module] | None) -> Mapping[str, nn.Module]:
    given = {} if modules is None else modules
    if not isinstance(given, Mapping) or not all(isinstance(m, nn.Module) for m in given.values()):
        raise TypeError(f"modules map paths of insertions to modules, got {modules!r}")
    return given


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
    """What a file holds besides tensors.

    Raises:
        CheckpointError: If it is of another version, or cannot be read.
    """
    try:
        data = json.loads(archive.metadata.get(CONTENTS, "null"))
        version = data.get("version") if isinstance(data, dict) else None
        if version != VERSION:
            raise CheckpointError(
                f"{archive.path} is of version {version!r}; this splitgrow reads version {VERSION}"
            )
        return read_record(Contents, data, "the checkpoint")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{archive.path} cannot be read: {error}") from error


def _journal(contents: Contents, archive: Archive) -> Journal:
    journal = Journal.from_data(contents.journal)
    numbers = (n.value[1] - n.value[0] for edit in journal.edits for n in edit.numbers)
    added = max(sum(edit.parameters for edit in journal.edits), *numbers, 0)
    if added > archive.elements:
        raise CheckpointError(
            f"the journal adds {added:,} parameters, the file has {archive.elements:,} numbers"
        )
    return journal


def _check_past(old: History | None, journal: Journal) -> None:
    if old is not None and len(old.edits) > len(journal.edits):
        raise CheckpointError(
            f"this model has done {len(old.edits)} edits, the saved one {len(journal.edits)}; load "
            f"into a fresh model"
        )


def _reach_levels_(model: nn.Module, archive: Archive, undo: Undo) -> None:
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


def _check_model(
    model: nn.Module, old: History | None, contents: Contents, journal: Journal
) -> None:
    numbered = frozenset(number.module for edit in journal.edits for number in edit.numbers)
    same = torch.__version__.split(".")[:2] == contents.torch.split(".")[:2]
    check_parts(contents.parts, parts_of(model, old), settings=same, fixed=numbered)


def _fill_(
    model: nn.Module, archive: Archive, contents: Contents, undo: Undo, *, device: torch.device
) -> None:
    """Gives the model's tensors the values of the file's.

    Raises:
        CheckpointError: If one is missing, or is of another shape or dtype, or there is one more.
    """
    found = tensors_of(model)
    _check_ties(found.ties, contents.ties)
    filled = [*_filled(found, archive, contents.own)]
    names = {id(tensor): name for name, tensor in found.tensors.items()}
    last = frozenset(contents.last)

    def made(name: str, tensor: Tensor, there: torch.device) -> Tensor:
        value = archive.tensor(MODEL + names[id(tensor)]).to(there, copy=True)
        if name not in last or tensor.dim() not in _LAST:
            return value
        return value.contiguous(memory_format=_LAST[tensor.dim()])

    fresh = next((t.device for t in filled), device)
    fill_meta_(model, made, undo, None if filled else fresh)
    with torch.no_grad():
        for tensor in filled:
            undo.on_failure(partial(_put_back, tensor, tensor.detach().clone()))
            tensor.copy_(archive.tensor(MODEL + names[id(tensor)]))


def _filled(found: Tensors, archive: Archive, passed_over: Container[str]) -> Iterator[Tensor]:
    """The tensors with values that get those of the file; all are checked.

    Args:
        found: The model's tensors. Buffers that it makes itself are of whichever shape it wants.
        archive: The file.
        passed_over: The names of those that the saved model made itself, and this one need not.

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
        if tensor.is_meta and _counts(stored.dtype) == _counts(tensor.dtype):
            continue
        if stored.dtype != tensor.dtype:
            raise CheckpointError(
                f"`{name}` is {stored.dtype} in the file, {tensor.dtype} in this model; convert "
                f"the model first, with model.to({stored.dtype})"
            )
        yield tensor


def _counts(dtype: torch.dtype) -> bool:
    """Whether a dtype is one of whole numbers."""
    return not dtype.is_floating_point and not dtype.is_complex


_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


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


def _set_extra_states_(model: nn.Module, contents: Contents, archive: Archive, undo: Undo) -> None:
    modules = structure(model)
    for path, tree in contents.states.items():
        module: Any = modules.get(path)
        if module is None or type(module).get_extra_state is nn.Module.get_extra_state:
            raise CheckpointError(f"the saved model has an extra state at `{path}`, this has none")
        undo.on_failure(partial(module.set_extra_state, module.get_extra_state()))
        try:
            module.set_extra_state(read_tree(tree, archive.take))
        except Exception as error:
            raise CheckpointError(f"`{path}` does not take its extra state: {error}") from error


def _new_history(
    model: nn.Module,
    old: History | None,
    contents: Contents,
    archive: Archive,
    example_inputs: Tensor | tuple[Any, ...] | None,
) -> History:
    """A history with the example inputs, which are the file's if it has some.

    Raises:
        TypeError: If the inputs that are given are no tuple.
        CheckpointError: If there are none anywhere, or those of the file are none.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))

    def read(tree: object) -> tuple[Any, ...]:
        inputs = read_tree(tree, archive.take)
        if not isinstance(inputs, tuple):
            raise CheckpointError("the example inputs of the file are none")
        moved: tuple[Any, ...] = pytree.tree_map_only(Tensor, lambda t: t.to(device), inputs)
        return moved

    history = History(ChannelGraph(), (), {})
    if contents.inputs is not None:
        history.inputs = read(contents.inputs)
        history.narrower = tuple((e, read(t)) for e, t in contents.narrower if t is not None)
        return history
    if example_inputs is None and old is None:
        raise CheckpointError("the file has no example inputs; give `example_inputs`")
    given = old.inputs if example_inputs is None and old is not None else example_inputs
    history.inputs = (given,) if isinstance(given, Tensor) else given or ()
    if not isinstance(history.inputs, tuple):
        raise TypeError(f"example_inputs must be a tensor or a tuple, got {type(given).__name__}")
    history.narrower = old.narrower if old is not None else ()
    return history


def _mode(contents: Contents) -> Mode:
    if contents.execution not in get_args(Mode):
        raise CheckpointError(f"the file has the execution mode {contents.execution!r}")
    return contents.execution  # type: ignore[return-value]
