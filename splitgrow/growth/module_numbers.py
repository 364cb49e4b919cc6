"""Reading and setting numbers that modules hold in attributes, such as a number of heads.

A number may lie in a configuration that a module holds. Then its name is that of the attribute with
the configuration and its own: ``config.vocab_size``.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from splitgrow.growth.edits import Edit
from splitgrow.layers.block_numbers import set_setting_
from splitgrow.utils.rollback import Undo


def held_number(module: nn.Module, attribute: str) -> Any:
    """The number, by the attribute's name: ``heads`` or ``splits[1]``; None if there is none."""
    holder, _, name = attribute.rpartition(".")
    if holder:
        return getattr(vars(module).get(holder), name, None)
    name, _, index = attribute.rstrip("]").partition("[")
    value: Any = vars(module).get(name)
    if not index:
        return value
    fits = isinstance(value, (list, tuple)) and int(index) < len(value)
    return value[int(index)] if fits else None


def set_number_(module: nn.Module, attribute: str, number: float) -> None:
    """Sets the number; it replaces a list or tuple, since other modules may share it."""
    holder, _, name = attribute.rpartition(".")
    if holder:
        set_setting_(vars(module)[holder], name, number)
        return
    name, _, index = attribute.rstrip("]").partition("[")
    if not index:
        vars(module)[name] = number
        return
    items = list(vars(module)[name])
    items[int(index)] = number
    vars(module)[name] = type(vars(module)[name])(items)


def numbers_at(edits: Iterable[Edit], view: int | None) -> dict[tuple[str, str], float]:
    """All numbers that ever changed, as they were after the edit `view`; None: as they are now."""
    numbers: dict[tuple[str, str], float] = {}
    for edit in edits:
        for change in edit.numbers:
            key = (change.module, change.attribute)
            numbers.setdefault(key, change.value[0])
            if view is None or edit.index <= view:
                numbers[key] = change.value[1]
    return numbers


def change_(module: nn.Module, attribute: str, number: float, undo: Undo) -> None:
    """Sets the number, until it is taken back."""
    undo.on_failure(partial(set_number_, module, attribute, held_number(module, attribute)))
    set_number_(module, attribute, number)
