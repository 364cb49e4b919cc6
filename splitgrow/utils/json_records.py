"""Records read from JSON, each value checked against the type that the record declares.

A file is not to be trusted: a record is made only of values of the declared types, and the rest of
the text has no effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Record = TypeVar("Record")

PLAIN = (str, int, float, bool, NoneType)


def read_record(kind: type[Record], data: object, where: str = "it") -> Record:
    """Makes a dataclass from the JSON data of its fields.

    Fields are ints, floats, texts, booleans, None, records, and tuples and mappings of these. A
    field declared as `Any` is any plain data, with tuples for lists; a field declared as `object`
    is the JSON data as it is.

    Args:
        kind: The dataclass. Fields with a default may be missing.
        data: Its JSON data.
        where: Its name in errors.

    Raises:
        ValueError: If a value is of another type, a field is missing, or there is one too many.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Size:
        ...     width: int
        ...     steps: tuple[int, ...] = ()
        >>> read_record(Size, {"width": 3, "steps": [1, 2]})
        Size(width=3, steps=(1, 2))
        >>> read_record(Size, {"width": "3"})
        Traceback (most recent call last):
        ValueError: it.width is '3', which is no int
    """
    if not isinstance(data, dict):
        raise ValueError(_unfit(data, "record", where))
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    unknown = [str(name) for name in data if name not in known]
    if unknown:
        raise ValueError(f"{where} has no {', '.join(unknown[:3])}")
    types = _types_of(kind)  # type: ignore[arg-type]
    values = {}
    for name, field in known.items():
        if name in data:
            values[name] = _read(types[name], data[name], f"{where}.{name}")
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{where} lacks `{name}`")
    return kind(**values)


@cache
def _types_of(kind: type[Any]) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(kind: Any, data: Any, where: str) -> Any:
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any:
        return plain_data(data, where)
    if kind is object:
        return data
    if origin in {Union, UnionType}:
        if type(data) in inside:  # None, or one of several kinds of numbers
            return data
        return _read(next(one for one in inside if one is not NoneType), data, where)
    if origin is tuple:
        return _tuple(inside, data, where)
    if origin is Mapping:
        return _mapping(inside, data, where)
    if is_dataclass(kind):
        return read_record(kind, data, where)  # type: ignore[arg-type]
    if kind is float and type(data) is int:
        return float(data)
    if type(data) is not kind:
        raise ValueError(_unfit(data, kind.__name__, where))
    return data


def _tuple(inside: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise ValueError(_unfit(data, "list", where))
    if inside[-1] is ...:
        return tuple([_read(inside[0], item, where) for item in data])
    if len(data) != len(inside):
        raise ValueError(f"{where} has {len(data)} items instead of {len(inside)}")
    return tuple([_read(*pair, where) for pair in zip(inside, data, strict=True)])


def _mapping(inside: tuple[Any, ...], data: Any, where: str) -> dict[Any, Any]:
    if not isinstance(data, dict):
        raise ValueError(_unfit(data, "mapping", where))
    keys = {int(key) if inside[0] is int else key: value for key, value in data.items()}
    return {key: _read(inside[1], value, f"{where}[{key!r}]") for key, value in keys.items()}


def plain_data(data: Any, where: str) -> Any:
    """Plain data of JSON, with tuples for lists.

    Raises:
        ValueError: If it is no plain data.
    """
    if isinstance(data, (list, tuple)):
        return tuple([plain_data(item, where) for item in data])
    if isinstance(data, Mapping):
        return {str(key): plain_data(value, where) for key, value in data.items()}
    if type(data) not in PLAIN:
        raise ValueError(_unfit(data, "plain data", where))
    return data


def written(value: Any) -> Any:
    """A record, or a value in one, in the form that JSON takes."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: written(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: written(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [written(item) for item in value]
    return value


def _unfit(data: Any, kind: str, where: str) -> str:
    shown = repr(data)
    shown = f"{shown[:40]}..." if len(shown) > 40 else shown
    return f"{where} is {shown}, which is no {kind}"
