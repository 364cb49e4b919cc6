"""The calls of a growth in several processes: compared by their words, and refused if unlike."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from splitgrow.growth.initializers import Initializer


def in_words(call: str, *args: object, **options: object) -> str:
    """A call with its arguments in words, which are the same in every process."""
    named = [f"{name}={_word(value)}" for name, value in options.items()]
    return f"{call}({', '.join([*map(_word, args), *named])})"


def _word(value: object) -> str:
    """An argument in words; an address in memory would differ between processes."""
    if isinstance(value, Initializer):
        return repr(value.name)
    if callable(value) and not isinstance(value, nn.Module):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    return repr(value)


def as_list(given: Any) -> Any:
    """Several things as a list, which can be read twice, and has the same words everywhere."""
    if isinstance(given, Tensor):
        return given.tolist()
    if isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
        return [*given]
    return given
