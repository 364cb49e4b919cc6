"""The trace of one run of forward: its ops, and the references to tensors and numbers in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from splitgrow.analysis.channels.tracked_int import Tracked


class Source(Enum):
    """The origin of a step that no op made."""

    INPUT = "an input of the model"
    TENSOR = "a tensor of the model, or one that was there before"
    NUMBER = "a number that a module holds in an attribute"
    UNSEEN = "a tensor that came out of something that could not be recorded"
    OUTPUT = "what the model returns"


@dataclass(frozen=True, slots=True)
class Ref:
    """Stands for the result of a step, or for a part of it.

    Attributes:
        step: The number of the step.
        path: The indices that lead to the part.
    """

    step: int
    path: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Step:
    """One op of a trace.

    Attributes:
        name: The user's name for it: ``add``, ``Conv2d``.
        target: The function, the module's type, the method's name, or a `Source`.
        args: Positional arguments, with a `Ref` for each tensor and tracked number.
        kwargs: Named arguments, likewise.
        example: Its result; of tensors only the shapes count.
        place: The line of the user's source that ran it.
        module: The path of the module that it called; None if it called none.
    """

    name: str
    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    example: Any
    place: str
    module: str | None = None


def refs_in(value: Any) -> Iterator[Ref]:
    """The references in arguments, and in the tuples, lists and dicts in them."""
    if isinstance(value, Ref):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from refs_in(item)
    elif isinstance(value, dict):
        yield from refs_in([*value.values()])


def refs_of(step: Step) -> Iterator[Ref]:
    """The references to tensors and numbers among an op's arguments."""
    return refs_in((step.args, tuple(step.kwargs.values())))


def at_path(value: Any, path: Sequence[Any]) -> Any:
    """The part of a nested value that indices lead to."""
    for index in path:
        value = value[index]
    return value


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A value with every leaf of its tuples, lists, dicts and slices changed."""
    if not isinstance(value, _NESTED):
        return change(value)
    if isinstance(value, (tuple, list)):
        items = [mapped(item, change) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    return slice(*(mapped(bound, change) for bound in (value.start, value.stop, value.step)))


_NESTED = (tuple, list, dict, slice)


def untracked(value: Any) -> Any:
    """The same value with plain numbers in place of tracked ones."""
    if isinstance(value, tuple) and hasattr(value, "_fields"):  # also one that takes no fields
        return tuple.__new__(type(value), (untracked(item) for item in value))
    if type(value) in (tuple, list):
        return type(value)(untracked(item) for item in value)
    return mapped(value, _plain)


def _plain(leaf: Any) -> Any:
    return int.__int__(leaf) if isinstance(leaf, Tracked) else leaf
