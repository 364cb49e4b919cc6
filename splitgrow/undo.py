"""All or nothing: steps that are taken back when a later one fails."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any


class Undo:
    """A context in which every step registers how to take it back.

    If the block raises, whatever it raises, the steps are taken back in reverse order.

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

    def take_back(self) -> None:
        """Takes back all steps so far."""
        while self._steps:
            self._steps.pop()()
