"""All or nothing: steps that are taken back when a later one fails.

A context manager can be interrupted while it leaves, before it has done anything. So each of these
is named twice, ``with Undo() as undo, undo:``; what the one could not finish the other does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Any

_GATHERING: ContextVar[Undo | None] = ContextVar("gathering", default=None)
"""What gathers the steps of blocks that succeed; None where these are final."""


class Undo:
    """A context in which every step registers how to take it back.

    If the block raises, whatever it raises, the steps are taken back in reverse order. If it
    succeeds, they are final, unless it is part of something larger that `gathers` them. Entering it
    changes nothing, so that there is nothing to take back before the block has begun.

    A step sets something to what it was, and so may run twice. One that is interrupted, by a second
    KeyboardInterrupt for one, runs again, those before it follow, and what interrupted it is raised
    when all are taken back. A step that fails again is left out, for the sake of the others.

    Example:
        >>> items = [1]
        >>> try:
        ...     with Undo() as undo, undo:
        ...         undo.on_failure(lambda: items.__setitem__(slice(None), [1]))
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

    def keep(self, *kept: dict[Any, Any]) -> None:
        """Has dictionaries hold what they hold now, in the same order, when it is taken back."""
        self.on_failure(partial(_put_back, [(items, items.copy()) for items in kept]))

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
            self._steps = []  # it leaves twice

    @contextmanager
    def gathers(self) -> Iterator[None]:
        """Takes over the steps of all that succeeds inside a ``with`` block.

        So what is all or nothing by itself can be a part of something that is.

        Example:
            >>> items = [1]
            >>> with Undo() as undo, undo:
            ...     with undo.gathers():
            ...         with Undo() as part, part:
            ...             part.on_failure(lambda: items.__setitem__(slice(None), [1]))
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
        steps = self._steps
        try:
            while steps:
                steps[-1]()
                del steps[-1:]
        except BaseException:
            while steps:
                with suppress(BaseException):
                    steps[-1]()
                del steps[-1:]
            raise


def _put_back(kept: Iterable[tuple[dict[Any, Any], dict[Any, Any]]]) -> None:
    for items, before in kept:
        if list(items) != list(before):
            items.clear()
        items.update(before)


class Meanwhile(Undo):
    """A context for what is to be otherwise inside of it only: its steps are always taken back.

    Example:
        >>> items = [1]
        >>> with Meanwhile() as meanwhile, meanwhile:
        ...     meanwhile.on_failure(lambda: items.__setitem__(slice(None), [1]))
        ...     items.append(2)
        >>> items
        [1]
    """

    def __enter__(self) -> Meanwhile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.take_back()
