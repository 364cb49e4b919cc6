"""One thread at a time changes a model, and no other runs it meanwhile.

The lock costs a running model nothing: only while it is changed, a model has a class whose calls
wait. The stacks of the threads tell which of them are in the middle of a call, and a change waits
for these. So no thread computes with half of an edit. ARCHITECTURE.md lists the alternatives, and
says why nothing smaller keeps that promise.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from threading import get_ident
from typing import Any, Concatenate

from torch import nn

from splitgrow.errors import SplitGrowError, UnsupportedModelError
from splitgrow.utils.inert_children import outer_modules
from splitgrow.utils.module_slots import modules_of
from splitgrow.utils.preserve import keep_modes_, keep_random_states_
from splitgrow.utils.rollback import P, T, Undo, temporarily

PATIENCE = 60.0
"""Seconds for which a change waits for other threads that run the model."""
_PAUSE = 0.001
_ATTRIBUTE = "_splitgrow_lock"
_CLOSED = "_splitgrow_closed"
ORIGINAL_CLASS = "_splitgrow_class"
"""The attribute of a growable model's class that holds the class that it was made of."""
HOLDER_BASE = "_splitgrow_base"
"""The same of the class of a module that holds grown tensors."""
_CALLS = ("_wrapped_call_impl", "_call_impl", "forward")
"""The functions on the stack while a module runs."""


class ModelLock:
    """The thread that has a model to itself.

    Attributes:
        rlock: Held by the thread that changes the model or shows a generation of it.
        holder: That thread.
        shown: The generation that it shows, if any.
        open_class: The class of the model, while it has one whose calls wait.
    """

    def __init__(self) -> None:
        self.rlock = threading.RLock()
        self.holder: int | None = None
        self.shown: int | None = None
        self.open_class: type[nn.Module] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> ModelLock:
        return ModelLock()

    def __reduce__(self) -> tuple[type[ModelLock], tuple[()]]:
        return ModelLock, ()

    def refuse_if_shown(self, what: str) -> None:
        """Checks that no other thread shows a generation, which may take any time.

        Raises:
            SplitGrowError: If one does.
        """
        if self.shown is not None and self.holder != get_ident():
            raise SplitGrowError(
                f"cannot {what} while another thread shows generation {self.shown} by "
                f"`with model.at(...)`; give one of them a model of its own: "
                f"splitgrow.merge(model, generation)"
            )


def change_alone(
    model: nn.Module,
    model_lock: ModelLock,
    what: str,
    work: Callable[Concatenate[Undo, P], T],
    *args: P.args,
    **kwargs: P.kwargs,
) -> T:
    """Runs an operation all or nothing, while no other thread runs or changes the model.

    Torch's modes and Python's warning filters are afterwards as they were. If the operation fails,
    so are the random number generators.

    Args:
        model: The model.
        model_lock: Its lock.
        what: The operation, for the error.
        work: Does it, given an `Undo` for its steps, and the arguments.
        args: Its positional arguments.
        kwargs: Its named arguments.

    Raises:
        SplitGrowError: If another thread shows a generation, or goes on running the model.
    """

    @temporarily
    def alone(undo: Undo) -> T:
        keep_modes_(undo)
        lock_(model, model_lock, what, undo)
        since = undo.depth
        keep_random_states_(outer_modules(model), undo)
        result = work(undo, *args, **kwargs)
        undo.commit(since)
        return result

    model_lock.refuse_if_shown(what)
    with model_lock.rlock:
        return alone()


def lock_(model: nn.Module, model_lock: ModelLock, what: str, undo: Undo) -> None:
    """Makes other threads' calls of a model wait, and waits for those under way; hold the lock.

    Args:
        model: The model.
        model_lock: Its lock.
        what: The operation, for the error.
        undo: Opens it again.

    Raises:
        SplitGrowError: If a call that is under way does not end.
    """
    if model_lock.open_class is not None:  # by this thread, which has the lock
        return
    undo.keep(vars(model_lock))
    model_lock.holder, model_lock.open_class = get_ident(), type(model)
    undo.on_failure(partial(_open, model, model_lock))
    vars(model)[_ATTRIBUTE] = model_lock
    model.__class__ = _closed(model_lock.open_class)
    patience = time.monotonic() + PATIENCE
    while running := [ident for ident in _running(model) if ident != get_ident()]:
        if time.monotonic() > patience:
            names = [thread.name for thread in threading.enumerate() if thread.ident in running]
            raise SplitGrowError(
                f"cannot {what} while the model runs in another thread ({', '.join(names)}): it "
                f"has not come to an end for {PATIENCE:g} seconds"
            )
        time.sleep(_PAUSE)


def open_class_of(module: nn.Module) -> type[nn.Module]:
    """A module's class, or the class that it has again once its calls no longer wait."""
    model_lock: ModelLock | None = vars(module).get(_ATTRIBUTE)
    return (model_lock.open_class if model_lock is not None else None) or type(module)


def set_class_(module: nn.Module, cls: type[nn.Module], undo: Undo) -> None:
    """Gives a module another class, also while its calls wait."""
    model_lock: ModelLock | None = vars(module).get(_ATTRIBUTE)
    undo.on_failure(partial(setattr, module, "__class__", type(module)))
    if model_lock is None or model_lock.open_class is None:
        module.__class__ = cls
        return
    undo.on_failure(partial(setattr, model_lock, "open_class", model_lock.open_class))
    model_lock.open_class = cls
    module.__class__ = _closed(cls)


def refuse_inside_forward(model: nn.Module, what: str) -> None:
    """Checks that this thread is not in the middle of a run of the model.

    Raises:
        SplitGrowError: If it is in one.
    """
    if get_ident() in _running(model):
        raise SplitGrowError(f"cannot {what} from inside the model's forward: call it afterwards")


def _open(model: nn.Module, model_lock: ModelLock) -> None:
    if model_lock.open_class is not None:
        model.__class__ = model_lock.open_class
    vars(model).pop(_ATTRIBUTE, None)


def _running(model: nn.Module) -> set[int]:
    """The threads in the middle of a call of one of a model's modules, by their ids."""
    called: list[tuple[int, int]] = []
    for ident, innermost in sys._current_frames().items():  # noqa: SLF001
        frame: Any = innermost
        while frame is not None:
            if frame.f_code.co_name in _CALLS:
                called.append((ident, id(frame.f_locals.get("self"))))
            frame = frame.f_back
    modules = set(map(id, modules_of(model))) if called else set()
    return {ident for ident, module in called if module in modules}


def _wait(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """A call of a model that is being changed: other threads wait until the change is done.

    Raises:
        SplitGrowError: If another thread shows a generation, which may take any time.
    """
    model_lock: ModelLock | None = vars(self).get(_ATTRIBUTE)
    if (
        model_lock is not None
        and model_lock.holder != get_ident()
        and "_is_replica" not in vars(self)
    ):
        model_lock.refuse_if_shown("run the model")
        with model_lock.rlock:
            model_lock = None
    if model_lock is None:
        return self(*args, **kwargs)  # by the class that it has now
    assert model_lock.open_class is not None
    call: Any = model_lock.open_class.__call__
    return call(self, *args, **kwargs)


def _closed(cls: type[nn.Module]) -> Any:
    """A subclass of a class, of the same name, whose calls wait.

    A class made here keeps the subclass: compiled code looks at classes, and so meets it again.

    Raises:
        UnsupportedModelError: If the class allows no subclass.
    """
    closed = vars(cls).get(_CLOSED)
    if closed is None:
        own = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__call__": _wait}
        try:
            closed = type(cls.__name__, (cls,), own)
        except TypeError as error:
            raise UnsupportedModelError(
                f"{cls.__name__} cannot be subclassed, as splitgrow does to add its methods "
                f"({error}); put the model into an nn.Sequential"
            ) from error
        if ORIGINAL_CLASS in vars(cls) or HOLDER_BASE in vars(cls):
            setattr(cls, _CLOSED, closed)
    return closed
