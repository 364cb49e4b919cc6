"""Modules of which a run of the model changes nothing that could not be told from a few signs.

A grown layer may have a thousand blocks. They are stock layers that the library made, and nobody's
code holds one of them by itself. To keep all that each has, for every run that must leave a model
as it was, takes longer than the run. So a layer says which of its blocks are inert, and of these
only the signs are kept: their number of attributes, their hooks, and their training flags.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from operator import attrgetter
from typing import Any, NamedTuple

from torch import nn

from splitgrow.utils.rollback import Undo

_HELD = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_buffers",
    "_modules",
)
_held = attrgetter(*_HELD)
_NAME = "inert_children"
"""The method by which a module says which of its children are inert."""


class Inert(NamedTuple):
    """The inert children of a module.

    Attributes:
        like: A child beside them that is not inert: attributes that are set on all are set on it.
        children: The inert ones, which have no hooks, buffers or children.
        names: The names of their attributes.
    """

    like: nn.Module
    children: list[nn.Module]
    names: frozenset[str]


def inert_among(
    like: nn.Module, children: list[nn.Module], kind: type[nn.Module], names: frozenset[str]
) -> Inert | None:
    """Some children of a module as inert ones; None if one of them shows that it is none.

    Args:
        like: As of `Inert`.
        children: The children.
        kind: The type that they must have.
        names: As of `Inert`.
    """
    if not children or set(map(type, children)) != {kind} or _show(children, len(names)):
        return None
    return Inert(like, children, names)


def _show(children: list[nn.Module], attributes: int) -> bool:
    """Whether children have anything that inert ones lack."""
    return {*map(len, map(vars, children))} != {attributes} or any(map(any, map(_held, children)))


def without_inert(model: nn.Module) -> tuple[list[nn.Module], list[Inert]]:
    """The modules of a model but for inert ones, in the model's order; and the inert ones."""
    found, seen, pending = list[nn.Module](), set[int](), [model]
    apart: list[Inert] = []
    while pending:
        module = pending.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found.append(module)
        children: Any = module._modules.values()  # noqa: SLF001
        tell = getattr(type(module), _NAME, None) if children else None
        inert = tell(module) if tell is not None else None
        if inert is not None:
            apart.append(inert)
            children = [inert.like]
        pending += [child for child in reversed(children) if child is not None]
    return found, apart


def keep_inert_(inert: Iterable[Inert], undo: Undo) -> None:
    """Makes `undo` restore inert children after a run. Keep the attributes of all others before."""
    kept = [
        (each, vars(each.like).copy(), [child.training for child in each.children])
        for each in inert
    ]
    undo.on_failure(partial(_put_back, kept))


def _put_back(kept: Iterable[tuple[Inert, dict[str, Any], list[bool]]]) -> None:
    for inert, before, training in kept:
        children = inert.children
        if [child.training for child in children] != training:
            for child, trains in zip(children, training, strict=True):
                child.__dict__["training"] = trains
        if _show(children, len(inert.names)):
            _clear(inert)
        now = vars(inert.like)
        for name, value in before.items():
            if now.get(name) is not value and name != "training":
                _set(children, name, now.get(name), value)


def _clear(inert: Inert) -> None:
    """Takes away all that inert children have no more of than hooks and attributes."""
    for child in inert.children:
        for store in _held(child):
            store.clear()
        for name in vars(child).keys() - inert.names:
            del child.__dict__[name]


def _set(children: Iterable[nn.Module], name: str, now: object, value: object) -> None:
    """Gives an attribute the value from before where it was set on all children."""
    for child in children:
        if child.__dict__.get(name) is now:
            child.__dict__[name] = value
