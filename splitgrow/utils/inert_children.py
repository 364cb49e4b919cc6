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

_hooks_of = attrgetter("_forward_hooks", "_forward_pre_hooks")
_NAME = "inert_children"
"""The method by which a module says which of its children are inert."""


class Inert(NamedTuple):
    """The inert children of a module.

    Attributes:
        like: A child beside them that is not inert: attributes that are set on all are set on it.
        children: The inert ones, which have no hooks that run forward.
        names: The names of their attributes.
    """

    like: nn.Module
    children: list[nn.Module]
    names: frozenset[str]

    def show(self) -> bool:
        """Whether they have anything that inert ones lack."""
        sizes = {*map(len, map(vars, self.children))}
        return sizes != {len(self.names)} or any(map(any, map(_hooks_of, self.children)))


def outer_modules(model: nn.Module) -> list[nn.Module]:
    """The modules of a model but for the added blocks of layers that a kernel runs.

    Nothing but tensors is in these, and they are stock layers without children.
    """
    return _walked(model, [], look=False)


def without_inert(model: nn.Module) -> tuple[list[nn.Module], list[Inert]]:
    """The modules of a model but for inert ones, in the model's order; and the inert ones."""
    apart: list[Inert] = []
    return _walked(model, apart, look=True), apart


def _walked(model: nn.Module, apart: list[Inert], *, look: bool) -> list[nn.Module]:
    found, seen, pending = list[nn.Module](), set[int](), [model]
    while pending:
        module = pending.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found.append(module)
        children: Any = module._modules.values()  # noqa: SLF001
        tell = getattr(type(module), _NAME, None) if children else None
        inert = tell(module) if tell is not None else None
        if inert is not None and not (look and inert.show()):
            apart.append(inert)
            children = [inert.like]
        pending += [child for child in reversed(children) if child is not None]
    return found


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
        if inert.show():
            _clear(inert)
        now = vars(inert.like)
        for name, value in before.items():
            if now.get(name) is not value and name != "training":
                _set(children, name, now.get(name), value)


def _clear(inert: Inert) -> None:
    """Takes away all that inert children have no more of than hooks and attributes."""
    for child in inert.children:
        for name, value in vars(child).items():
            if "hooks" in name and value:
                value.clear()
        for name in vars(child).keys() - inert.names:
            del child.__dict__[name]


def _set(children: Iterable[nn.Module], name: str, now: object, value: object) -> None:
    """Gives an attribute the value from before where it was set on all children."""
    for child in children:
        if child.__dict__.get(name) is now:
            child.__dict__[name] = value
