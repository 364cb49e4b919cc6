"""How grown layers run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Literal, get_args

from splitgrow.utils.rollback import Undo

Mode = Literal["auto", "blockwise", "merged"]

_MODE: ContextVar[Mode] = ContextVar("splitgrow_execution", default="auto")


@contextmanager
def execution(mode: Mode) -> Iterator[None]:
    """Chooses how grown layers run inside a ``with`` block.

    All modes compute the same function, with the same gradients.

    Args:
        mode: "blockwise" runs each block and joins the results; "merged" runs the one plain layer
            that the blocks make together, and computes its weight's gradient only where it trains;
            "auto", the default, chooses the faster one by shape. A layer that cannot run as asked
            runs the other way; `handle(model).runs` tells how each layer ran, and why.

    Where a layer runs as one, its frozen parameters become views of one larger tensor. They stay
    the same Parameter objects with the same values; but ``parameter.view(-1)``, which takes a
    tensor for contiguous, needs ``reshape`` then. Running a layer block by block gives each
    parameter its own storage again.

    Raises:
        ValueError: If there is no such mode.

    Example:
        >>> import torch, splitgrow
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> model = splitgrow.growable(model, torch.ones(1, 2))
        >>> edit = model.expand_layer("0", 2)
        >>> with splitgrow.execution("blockwise"):
        ...     model(torch.ones(1, 2)).shape
        torch.Size([1, 1])
    """
    if mode not in get_args(Mode):
        raise ValueError(f"no execution mode {mode!r}; there are {', '.join(get_args(Mode))}")
    token = _MODE.set(mode)
    try:
        yield
    finally:
        _MODE.reset(token)


_KEEPS: ContextVar[bool] = ContextVar("keeps", default=True)


def keeps() -> bool:
    """Whether grown layers may keep assembled tensors, of which blocks' tensors become views."""
    return _KEEPS.get()


def keep_nothing_(undo: Undo) -> None:
    """Has grown layers run without changing anything in themselves, for analysis and checks."""
    undo.on_failure(partial(_KEEPS.set, _KEEPS.get()))
    _KEEPS.set(False)


def execution_mode() -> Mode:
    """The mode that is chosen now."""
    return _MODE.get()


def set_execution_mode_(mode: Mode, undo: Undo) -> None:
    """Chooses a mode from here on, as it was when a checkpoint was saved."""
    undo.on_failure(partial(_MODE.set, _MODE.get()))
    _MODE.set(mode)
