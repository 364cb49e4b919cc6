"""All or nothing: steps that are taken back when a later one fails.

A context manager can be interrupted while it leaves, before it has done anything. So an operation
enters its `Undo` twice: the second exit finishes the work of the first. `all_or_nothing` and
`temporarily` do that, once for each operation, and the operation passes the `Undo` on.

Considered: contextlib.ExitStack. It takes a callback off the stack before it calls it. So an
interrupt of the callback, or one between the two, leaves a change in place for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial, wraps
from operator import is_
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_GATHERING: ContextVar[Undo | None] = ContextVar("gathering", default=None)
"""The `Undo` that gathers the committed steps; None where these are final."""


class Undo:
    """A stack of steps, each of which takes back a change; they run when the block ends.

    `commit` makes the steps so far final, so that none of them runs. Entering changes nothing.

    A step restores a former state, and so may run twice. A step that is interrupted, by a second
    KeyboardInterrupt for example, runs again; those before it follow, and the interrupt is raised
    when all are taken back. A step that fails again is left out, for the sake of the others.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], Any]] = []

    def on_failure(self, step: Callable[[], Any]) -> None:
        """Registers how to take back the next change. Call it before making the change."""
        self._steps.append(step)

    def keep(self, *kept: dict[Any, Any]) -> None:
        """Registers a step that restores the present items of dictionaries, in their order."""
        full = [(items, items.copy()) for items in kept if items]
        self.on_failure(partial(_put_back, full, [items for items in kept if not items]))

    @property
    def depth(self) -> int:
        """The number of steps."""
        return len(self._steps)

    def commit(self, since: int = 0) -> None:
        """Makes steps final, or gives them to the `Undo` that `gathers` them.

        Args:
            since: The number of first steps that stay.
        """
        larger = _GATHERING.get()
        if larger is not None:
            larger._steps += self._steps[since:]  # noqa: SLF001
        del self._steps[since:]

    @contextmanager
    def gathers(self) -> Iterator[None]:
        """Takes over the steps of all operations that succeed inside a ``with`` block.

        So an operation that is all or nothing by itself can be a part of a larger one.

        Example:
            >>> widths = {"conv": 4}
            >>> @all_or_nothing
            ... def widen(undo, name):
            ...     undo.keep(widths)
            ...     widths[name] += 2
            >>> with Undo() as undo, undo:
            ...     with undo.gathers():
            ...         widen("conv")
            ...     print(widths)
            {'conv': 6}
            >>> widths
            {'conv': 4}
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

    def __enter__(self) -> Undo:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.take_back()


def _put_back(
    full: Iterable[tuple[dict[Any, Any], dict[Any, Any]]], empty: Iterable[dict[Any, Any]]
) -> None:
    for items, before in full:
        # Tensors, as keys, have an == of their own.
        if len(items) != len(before) or not all(map(is_, items, before)):
            items.clear()
        items.update(before)
    for items in empty:  # most of a model's: each module has eleven for hooks
        if items:
            items.clear()


def temporarily(work: Callable[Concatenate[Undo, P], T]) -> Callable[P, T]:
    """Gives a function an `Undo`, and takes all of its steps back in the end.

    Example:
        >>> widths = {"conv": 4, "norm": 4}
        >>> @temporarily
        ... def sum_without(undo, name):
        ...     undo.keep(widths)
        ...     del widths[name]
        ...     return sum(widths.values())
        >>> sum_without("norm"), widths
        (4, {'conv': 4, 'norm': 4})
    """

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with Undo() as undo, undo:
            return work(undo, *args, **kwargs)

    return run


def all_or_nothing(work: Callable[Concatenate[Undo, P], T]) -> Callable[P, T]:
    """Gives a function an `Undo`, and takes its steps back if it raises any exception.

    Example:
        >>> widths = {"conv": 4, "norm": 4}
        >>> @all_or_nothing
        ... def widen(undo, *names):
        ...     undo.keep(widths)
        ...     for name in names:
        ...         widths[name] += 2
        >>> widen("conv", "norm")
        >>> try:
        ...     widen("conv", "head")
        ... except KeyError:
        ...     print(widths)
        {'conv': 6, 'norm': 6}
    """

    @wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        with Undo() as undo, undo:
            result = work(undo, *args, **kwargs)
            undo.commit()
            return result

    return run
