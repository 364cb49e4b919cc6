"""The forms in which users write an op: functions, methods, modules, operators, in place or not."""

from __future__ import annotations

import operator
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_OWNERS: dict[str, Any] = {"torch": torch, "F": F, "nn": nn, "operator": operator}


def forms(names: str) -> list[Any]:
    """The targets of ops by their names, as far as this torch has them.

    Args:
        names: Names with blanks between them. A plain name stands for the functions of torch and
            torch.nn.functional, the tensors' method, all three in place, and torch.nn's module; a
            dotted one (``F.unfold``, ``Tensor.unfold``, ``torch.linalg.cross``) for that alone, and
            one with underscores on both sides for that method.

    Example:
        >>> sorted({str(getattr(form, "__name__", form)) for form in forms("relu Tensor.__add__")})
        ['ReLU', '__add__', 'relu', 'relu_']
    """
    return list(dict.fromkeys(form for name in names.split() for form in _forms_of(name)))


def _forms_of(name: str) -> Iterator[Any]:
    if "." in name:
        owner, *path = name.split(".")
        if owner == "Tensor":
            yield from _methods(path[0])
            return
        found = _OWNERS[owner]
        for part in path:
            found = getattr(found, part, None)
        if found is not None:
            yield found
        return
    yield from _methods(name)
    if name.startswith("__"):
        return
    for library in (torch, F):
        for own in (name, f"{name}_"):
            function = getattr(library, own, None)
            if callable(function) and not isinstance(function, type):
                yield function
    module = module_type(name)
    if module is not None:
        yield module


def _methods(name: str) -> Iterator[str]:
    if hasattr(Tensor, name):
        yield name


def module_type(name: str) -> type[nn.Module] | None:
    """The module of torch.nn that runs an op, by the op's name; None if there is none.

    Example:
        >>> module_type("leaky_relu")
        <class 'torch.nn.modules.activation.LeakyReLU'>
    """
    return _module_types().get(name.replace("_", "").lower())


@cache
def _module_types() -> dict[str, type[nn.Module]]:
    found = {name: getattr(nn, name) for name in dir(nn)}
    return {
        name.lower(): value
        for name, value in found.items()
        if isinstance(value, type) and issubclass(value, nn.Module)
    }


@cache
def is_in_place_name(name: str) -> bool:
    """Whether a function or method of this name writes into its first operand."""
    if re.fullmatch(r"__i[a-z]+__", name) and name not in ("__index__", "__int__", "__invert__"):
        return True
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


IN_PLACE_OPERATORS: dict[Any, Any] = {
    getattr(operator, f"i{name}"): getattr(operator, plain)
    for name, plain in (
        *((name, name) for name in ("add", "sub", "mul", "truediv", "floordiv", "pow", "mod")),
        *(("and", "and_"), ("or", "or_"), ("xor", "xor"), ("matmul", "matmul")),
        *(("lshift", "lshift"), ("rshift", "rshift")),
    )
}
"""Python's operators that write into their first operand, with those that do not."""


def method_of_operator(function: Any) -> Any:
    """The tensors' method that one of Python's operators calls; any other function as it is.

    Example:
        >>> method_of_operator(operator.iadd)
        '__iadd__'
    """
    if getattr(function, "__module__", "") != "_operator":
        return function
    name = f"__{function.__name__.strip('_')}__"
    return name if hasattr(Tensor, name) and name not in ("__getitem__",) else function
