"""All or nothing: steps that are taken back when a later one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any

_GATHERING: ContextVar[Undo | None] = ContextVar("gathering", default=None)
"""What gathers the steps of blocks that succeed; None where these are final."""


class Undo:
    """A context in which every step registers how to take it back.

    If the block raises, whatever it raises, the steps are taken back in reverse order. If it
    succeeds, they are final, unless it is part of something larger that `gathers` them.

    Example:
        >>> items = [1]
        >>> try:
        ...     with Undo() as undo:
        ...         undo.on_failure(items.pop)
        ...         items.append(2)
        ...         raise MemoryError
        ... except MemoryError:
        ...     print(items)
        [1]
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], Any]] = []

    def on_failure(self, step: Callable[[], Any]) -> None:
        """Registers how to take back what comes next. Call it before doing that."""
        self._steps.append(step)

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.take_back()
            return
        larger = _GATHERING.get()
        if larger is not None and larger is not self:
            for step in self._steps:
                larger.on_failure(step)

    @contextmanager
    def gathers(self) -> Iterator[None]:
        """Takes over the steps of all that succeeds inside a ``with`` block.

        So what is all or nothing by itself can be a part of something that is.

        Example:
            >>> items = [1]
            >>> with Undo() as undo:
            ...     with undo.gathers():
            ...         with Undo() as part:
            ...             part.on_failure(items.pop)
            ...             items.append(2)
            ...     undo.take_back()
            >>> items
            [1]
        """
        before = _GATHERING.set(self)
        try:
            yield
        finally:
            _GATHERING.reset(before)

    def take_back(self) -> None:
        """Takes back all steps so far."""
        while self._steps:
            self._steps.pop()()
