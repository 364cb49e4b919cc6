"""The tensors in the output of a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType
from typing import Any

from torch import Tensor, nn


class OpaqueError(Exception):
    """The output holds an object that cannot be looked into, such as a generator."""


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors in the output of a model.

    Raises:
        OpaqueError: If it holds an object that cannot be looked into.
    """
    return list(_tensors_in(value, set()))


def _tensors_in(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif id(value) not in seen and not isinstance(value, (nn.Module, type)):
        seen.add(id(value))
        for part in _parts_of(value):
            yield from _tensors_in(part, seen)


def _parts_of(value: Any) -> Iterable[Any]:
    if value is None or isinstance(value, (str, bytes, int, float, complex)):
        return ()
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, (tuple, list, set, frozenset)):
        return value
    if isinstance(value, Iterator):
        raise OpaqueError
    if isinstance(value, partial):
        return [value.args, value.keywords]
    if isinstance(value, FunctionType):
        return [cell.cell_contents for cell in value.__closure__ or ()]
    return attributes_of(value).values()


def attributes_of(value: Any) -> dict[str, Any]:
    """The attributes of an object by name, those in slots first."""
    slots = [name for part in type(value).__mro__ for name in _slots(part)]
    held = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return {**held, **getattr(value, "__dict__", {})}


def _slots(part: type) -> tuple[str, ...]:
    slots = vars(part).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)
