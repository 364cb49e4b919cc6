"""Repeating the removal of layers in a model that is rebuilt from its journal."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import replace

from torch import nn

from splitgrow.errors import CheckpointError
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import structure
from splitgrow.growth.removing.record import LayerRemoval
from splitgrow.growth.removing.taking_off import inserted_at, put_identity_, take_off_
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.utils.rollback import Undo


def remove_layers_again_(model: nn.Module, removals: Iterable[LayerRemoval], undo: Undo) -> None:
    """Takes layers out, as an edit says.

    Args:
        model: The model.
        removals: The layers.
        undo: Takes it back.

    Raises:
        CheckpointError: If the model has no such layers.
    """
    for removal in removals:
        before = sum(parameter.numel() for parameter in model.parameters())
        if removal.edit:
            found = inserted_at(model, removal.name)
            if found is None or found[1].edit != removal.edit or found[1].experts is not None:
                raise CheckpointError(f"it takes out `{removal.name}`, which was not inserted")
            take_off_(model, *found, undo)
        else:
            put_identity_(model, _found(model, removal.name), undo)
        gone = before - sum(parameter.numel() for parameter in model.parameters())
        if gone != removal.parameters:
            raise CheckpointError(
                f"with `{removal.name}` {removal.parameters:,} parameters go there, here {gone:,}"
            )


def _found(model: nn.Module, name: str) -> nn.Module:
    """A module that an Identity can replace.

    Raises:
        CheckpointError: If there is none.
    """
    modules = structure(model)
    module = modules.get(name)
    around = [name.rsplit(".", n)[0] for n in range(1, name.count(".") + 1)]
    inside = any(isinstance(modules.get(path), SplitLayer) for path in around)
    if not name or module is None or inside or isinstance(module, InsertionWrapper):
        raise CheckpointError(f"it takes out `{name}`, which this model does not have")
    return module


def lasting(edits: Sequence[Edit], given: Container[str]) -> list[Edit]:
    """Edits without insertions of users' modules that nobody gives and later edits take out.

    All that edits did inside of these goes, too.

    Args:
        edits: The edits.
        given: The paths of the insertions whose modules the user passes again.
    """
    gone = [removal for edit in edits for removal in edit.removed_layers if removal.edit]
    passing = [
        LayerRemoval(item.name, item.kind, "", 0, edit.index)
        for edit in edits
        for item in edit.inserted
        if "given" in item.recipe
        and item.name not in given
        and any(removal.has(item.name) for removal in gone)
    ]
    return [_without(edit, passing) for edit in edits] if passing else list(edits)


def _without(edit: Edit, passing: Sequence[LayerRemoval]) -> Edit:
    def stays(path: str) -> bool:
        return not any(removal.has(path) for removal in passing)

    return replace(
        edit,
        changes=tuple(item for item in edit.changes if stays(item.name)),
        numbers=tuple(item for item in edit.numbers if stays(item.module)),
        joined=tuple(item for item in edit.joined if stays(item.name)),
        inserted=tuple(item for item in edit.inserted if stays(item.name)),
        absorbed=tuple(filter(stays, edit.absorbed)),
        removed=tuple(item for item in edit.removed if stays(item.name)),
        removed_layers=tuple(item for item in edit.removed_layers if stays(item.name)),
    )
