"""Who holds the modules of a model, and putting one in the place of another wherever it is held.

A module holds others as its children, and in its attributes: by themselves, in lists and dicts, and
in lists and dicts within these. All of those can be given something else. What holds a module in
any other way (a tuple, a closure, an object) goes on holding the old one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn

from splitgrow.undo import Undo

Holders = Mapping[int, Sequence[tuple[Any, Any]]]
"""For each module, by its id, the dicts and lists that hold it, with its keys there."""

_OTHER_STORES = frozenset(("_parameters", "_buffers", "_non_persistent_buffers_set", "training"))


def holders_in(model: nn.Module) -> Holders:
    """Who holds the modules of a model."""
    holders: dict[int, list[tuple[Any, Any]]] = {}
    for module in model.modules():
        for _, container, key, held in held_by(module):
            if container is not None:
                holders.setdefault(id(held), []).append((container, key))
    return holders


def held_by(module: nn.Module) -> Iterator[tuple[str, Any, Any, nn.Module]]:
    """The modules that a module holds.

    Yields:
        The attribute; the dict or list in it that holds the other, None if it is something that
        cannot be given another; the key there; and the module that is held.
    """
    own = vars(module)
    seen = {id(own)}
    for attribute, value in own.items():
        if attribute not in _OTHER_STORES:
            for container, key, held in _held(value, own, attribute, seen):
                yield attribute, container, key, held


def _held(
    value: Any, container: Any, key: Any, seen: set[int]
) -> Iterator[tuple[Any, Any, nn.Module]]:
    if isinstance(value, nn.Module):
        yield container, key, value
    elif isinstance(value, (dict, list, tuple, set, frozenset)) and id(value) not in seen:
        seen.add(id(value))
        within = value if isinstance(value, (dict, list)) else None
        for name, item in _items(value):
            yield from _held(item, within, name, seen)


def _items(value: Any) -> Iterator[tuple[Any, Any]]:
    return iter(value.items() if isinstance(value, dict) else enumerate(value))


def put_in_place_(holders: Holders, old: nn.Module, new: nn.Module, undo: Undo) -> None:
    """Puts a module in the place of another, wherever that is held."""
    for container, key in holders[id(old)]:
        if isinstance(container, list):  # its user may make it shorter meanwhile
            undo.on_failure(partial(container.__setitem__, slice(None), list(container)))
        else:
            undo.on_failure(partial(container.__setitem__, key, old))
        container[key] = new
