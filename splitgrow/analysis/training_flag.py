"""Whether a model's code asks if it is training, as far as its code tells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from types import CodeType, FunctionType, MethodType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from splitgrow.analysis.leaf_modules import is_leaf
from splitgrow.analysis.written_out import written_out
from splitgrow.layers.split_layer import stock
from splitgrow.utils.model_lock import HOLDER_BASE, ORIGINAL_CLASS

_MODE = "training"
_METHODS = (FunctionType, MethodType, staticmethod, classmethod, property)


class ModeIn(Enum):
    """Where a model's code names the mode, training or evaluation."""

    NOWHERE = "in no code but that of leaf modules, which do as a trace tells them"
    SHOWN = "in code that a trace follows, so that two traces show whether it matters"
    HIDDEN = "also in code that no trace follows"


def mode_in(model: nn.Module) -> ModeIn:
    """Where a model's code names the mode.

    Where it does so nowhere, one run at other widths in training mode stands for two: with other
    ops than in evaluation it would not agree with the graph.
    """
    modules = list(model.named_modules())
    leaves = {module for name, module in modules if name and is_leaf(module)}
    if not may_ask_for_the_mode(m for _, m in modules if m not in leaves):
        return ModeIn.NOWHERE
    own = (module for module in leaves if not _is_torchs(type(stock(module))))
    hidden = written_out(module for _, module in modules) or may_ask_for_the_mode(own)
    return ModeIn.HIDDEN if hidden else ModeIn.SHOWN


def may_ask_for_the_mode(modules: Iterable[nn.Module]) -> bool:
    """Whether the modules' code, or functions that it calls by name, say `training`.

    It reads Python's own functions only. It does not read code that is reached in other ways, as a
    method of an object, or that is compiled.
    """
    for module in modules:
        cls: Any = type(module)
        if _class_names_the_mode(cls):
            return True
        for name, value in vars(module).items():
            held = isinstance(value, (FunctionType, MethodType))
            if (held and _names_the_mode(value)) or (name == "forward" and not held):
                return True
    return False


_READ: WeakKeyDictionary[type[nn.Module], bool] = WeakKeyDictionary()
"""The answer for each class, as long as the class exists."""


def _class_names_the_mode(cls: type[nn.Module]) -> bool:
    if cls not in _READ:
        # Forward calls none of the methods that a class made here gains.
        parts = (
            part
            for part in cls.__mro__
            if part not in (nn.Module, object) and not {ORIGINAL_CLASS, HOLDER_BASE} & {*vars(part)}
        )
        members = (member for part in parts for member in vars(part).values())
        _READ[cls] = any(_names_the_mode(member) for member in members)
    return _READ[cls]


def _names_the_mode(member: Any) -> bool:
    """Whether a function names the mode, or one that it wraps, holds or finds among its globals."""
    seen: set[int] = set()
    pending = [member]
    while pending:
        found = pending.pop()
        if isinstance(found, property):
            pending += [found.fget, found.fset]
        elif isinstance(found, (MethodType, staticmethod, classmethod)):
            pending.append(found.__func__)
        elif isinstance(found, FunctionType) and id(found) not in seen:
            seen.add(id(found))
            names = set(_names_in(found.__code__))
            if _MODE in names:
                return True
            pending += [cell.cell_contents for cell in found.__closure__ or () if _filled(cell)]
            called = (found.__globals__[name] for name in names & found.__globals__.keys())
            pending += [function for function in called if not _is_torchs(function)]
    return False


def _names_in(code: CodeType) -> Iterator[Any]:
    """The names and texts in a function's code, and in that of the functions defined inside."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
        elif isinstance(constant, str):
            yield constant


def _filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _is_torchs(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith("torch.")
