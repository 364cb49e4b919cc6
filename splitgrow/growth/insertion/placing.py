"""Putting an insertion in its place: a wrapper around the module next to it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import nn

from splitgrow.growth.edit_parts import Insertion
from splitgrow.growth.insertion.request import EXPERTS, FORMS
from splitgrow.layers.expert_sets import ExpertSet, let_skip_
from splitgrow.layers.hooks import hand_over_
from splitgrow.layers.insertion_wrapper import Inserted, InsertionWrapper
from splitgrow.utils.module_slots import holders_in, put_in_place_
from splitgrow.utils.rollback import Undo


def wrap_(
    model: nn.Module,
    host: nn.Module,
    module: nn.Module,
    inserted: tuple[int, Insertion],
    undo: Undo,
) -> InsertionWrapper:
    """Puts a module before or behind another, and returns the wrapper that holds both.

    Args:
        model: The model.
        host: The module next to which it is put.
        module: The inserted module.
        inserted: The number of the edit, and its record of the insertion.
        undo: Takes it back.
    """
    edit, insertion = inserted
    experts = ExpertSet.read(insertion.recipe[EXPERTS]) if insertion.kind == EXPERTS else None
    item = Inserted(edit, insertion.before, FORMS[insertion.kind], experts)
    if experts is not None:
        for part in host.modules():
            undo.keep(vars(part))
        let_skip_(host)
    wrapper = next(
        (m for m in model.modules() if isinstance(m, InsertionWrapper) and m.wrapped is host), None
    )
    if wrapper is None:
        wrapper = InsertionWrapper(host)
        wrapper.training, wrapper.tensor_result = host.training, insertion.tensor_result
        wrapper.set_inserted({item.name: module}, (item,))
        if experts is not None:
            hand_over_(host, wrapper, undo, state=False)  # they saw the results of all experts
        put_in_place_(holders_in(model), host, wrapper, undo)
        return wrapper
    modules: Mapping[str, Any] = {i.name: wrapper.part(i.name) for i in wrapper.inserted}
    undo.on_failure(partial(wrapper.set_inserted, modules, wrapper.inserted))
    new = {item.name: module, **modules}
    wrapper.set_inserted(new, (item, *wrapper.inserted))
    return wrapper
