"""Replaying insertions from the records in their edits."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from splitgrow.errors import CheckpointError
from splitgrow.growth.edit_parts import Insertion
from splitgrow.growth.experts.copies import further_experts
from splitgrow.growth.history import structure
from splitgrow.growth.insertion.block_copies import announce_, let_learn_
from splitgrow.growth.insertion.builders import replacement
from splitgrow.growth.insertion.placing import wrap_
from splitgrow.growth.insertion.recipes import made_of, parts_in
from splitgrow.growth.insertion.request import COPIES, EXPERTS, FORMS
from splitgrow.layers.expert_sets import ExpertSet
from splitgrow.layers.fade import FadeIn
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.utils.rollback import Undo

_FEW = 100
"""The number of parts that may be without parameters."""
_MOST_COPIES = 4096
"""More copies of each expert than any edit makes."""


def insert_again_(
    model: nn.Module,
    edit: int,
    insertion: Insertion,
    given: Mapping[str, nn.Module],
    undo: Undo,
) -> None:
    """Repeats an insertion; the new module has no values yet.

    Args:
        model: The model.
        edit: The number of the edit.
        insertion: The edit's record of it.
        given: The modules that the user passes again, by the paths of the insertions.
        undo: Takes it back.

    Raises:
        CheckpointError: If it does not fit the model, or the user has to pass a module.
    """
    modules = structure(model)
    host = modules.get(insertion.host)
    if host is None or not insertion.host or isinstance(host, InsertionWrapper):
        raise CheckpointError(f"the model has no module `{insertion.host}`")
    named = insertion.name == f"{insertion.host}.inserted{edit}"
    if insertion.kind not in FORMS or not named or insertion.name in modules:
        raise CheckpointError(f"it inserts a {insertion.kind!r} as `{insertion.name}`")
    parts = parts_in(insertion.recipe, modules)
    if insertion.kind == EXPERTS:
        parts *= _times_of(insertion)
    if parts > _FEW + insertion.parameters:
        raise CheckpointError(f"`{insertion.name}` is of more parts than it has parameters")
    if insertion.kind == EXPERTS:
        module, _ = further_experts(model, host, insertion.recipe, empty=True)
    else:
        module = _made(modules, insertion, given)
    if insertion.kind in COPIES:
        announce_(module, model, host, undo)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    if parameters != insertion.parameters:
        raise CheckpointError(
            f"`{insertion.name}` has {insertion.parameters:,} parameters there, as it is made "
            f"here {parameters:,}"
        )
    wrap_(model, host, module, (edit, insertion), undo)


def _times_of(insertion: Insertion) -> int:
    """How many times an insertion has the experts that were there before.

    Raises:
        CheckpointError: If it has no valid set of experts.
    """
    try:
        experts = ExpertSet.read(insertion.recipe.get(EXPERTS))
    except ValueError as error:
        raise CheckpointError(f"`{insertion.name}`: {error}") from None
    times = experts.count // experts.first
    if insertion.recipe.get("copy") != insertion.host or times > _MOST_COPIES:
        raise CheckpointError(f"`{insertion.name}` are no further experts of `{insertion.host}`")
    return times


def _made(
    modules: Mapping[str, nn.Module],
    insertion: Insertion,
    given: Mapping[str, nn.Module],
) -> nn.Module:
    """The inserted module, without values.

    Raises:
        CheckpointError: If it cannot be made, or the user has to pass it.
    """
    if "given" in insertion.recipe and insertion.name not in given:
        raise CheckpointError(
            f"{insertion}; it was made of a {insertion.recipe['given']} of yours: give that again, "
            f"as modules={{{insertion.name!r}: ...}}"
        )
    module = made_of(insertion.recipe, modules, given.get(insertion.name))
    if insertion.kind == "fade":
        return FadeIn(nn.Identity(), module)
    if insertion.kind == "replacement":
        return replacement(module)
    if insertion.kind in COPIES:
        let_learn_(module)
        return module
    return module.train(modules[insertion.host].training)
