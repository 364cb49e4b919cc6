"""All or nothing: steps that are taken back when a later one fails.

A context manager can be interrupted while it leaves, before it has done anything. So an operation
enters its `Undo` twice: what the one exit could not finish the other does. `all_or_nothing` and
`temporarily` see to that, once for each operation; all that it calls is given the `Undo`.

Considered: contextlib.ExitStack. It takes a callback off the stack before it calls it, so one that
is interrupted, or an interrupt between the two, leaves a change in place for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
_GATHERING: ContextVar[Undo | None] = ContextVar("gathering", default=None)
"""What gathers the steps that are committed; None where these are final."""


class Undo:
    """A stack of steps, each of which takes back a change; they run when the block ends.

    `commit` makes the steps so far final, so that none of them runs. Entering changes nothing.

    A step sets something to what it was, and so may run twice. One that is interrupted, by a second
    KeyboardInterrupt for one, runs again, those before it follow, and what interrupted it is raised
    when all are taken back. A step that fails again is left out, for the sake of the others.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], Any]] = []

    def on_failure(self, step: Callable[[], Any]) -> None:
        """Registers how to take back what comes next. Call it before doing that."""
        self._steps.append(step)

    def keep(self, *kept: dict[Any, Any]) -> None:
        """Has dictionaries hold what they hold now, in the same order, when it is taken back."""
        self.on_failure(partial(_put_back, [(items, items.copy()) for items in kept]))

    @property
    def depth(self) -> int:
        """How many steps there are."""
        return len(self._steps)

    def commit(self, since: int = 0) -> None:
        """Makes steps final, or gives them to what `gathers` them.

        Args:
            since: How many steps stay, the first ones.
        """
        larger = _GATHERING.get()
        if larger is not None:
            larger._steps += self._steps[since:]  # noqa: SLF001
        del self._steps[since:]

    @contextmanager
    def gathers(self) -> Iterator[None]:
        """Takes over the steps of all that succeeds inside a ``with`` block.

        So what is all or nothing by itself can be a part of something that is.

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


def _put_back(kept: Iterable[tuple[dict[Any, Any], dict[Any, Any]]]) -> None:
    for items, before in kept:
        if list(items) != list(before):
            items.clear()
        items.update(before)


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
    """Gives a function an `Undo`, and takes its steps back if it raises, whatever it raises.

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
