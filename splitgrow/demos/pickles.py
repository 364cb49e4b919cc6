"""Reads the pickles of CIFAR's python version, and calls nothing that they name.

A pickle is a program, and may name any function to call. Here each name stands for a record of the
call, and the steps are those that CIFAR's files take. They are counted before the first one runs,
so a file takes about the memory of its bytes.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_STEPS = 500_000  # 50,000 labelled pictures with their names take 200,000
_MOST_TUPLES = 100  # an array takes 6; hashing tuples inside tuples takes the stack of C
_NAMES = ("numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype")
_TUPLES = frozenset(("EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "TUPLE"))
_STEPS = _TUPLES.union(
    ("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2"),
    ("BINSTRING", "SHORT_BINSTRING", "EMPTY_LIST", "APPEND", "APPENDS"),
    ("EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    ("GLOBAL", "REDUCE", "BUILD"),
)


class _Call:
    """A call that a pickle asks for. It is recorded and not made."""

    __slots__ = ("arguments", "state")

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module} {name}" not in _NAMES:
            raise pickle.UnpicklingError(f"the name {f'{module} {name}'[:80]!r}")
        return _Call


def read(content: bytes) -> dict[str, Any]:
    """The dictionary that a pickle holds: of bytes, numbers, lists, and arrays for `pixels`.

    Args:
        content: The file, of a bounded size.

    Raises:
        ValueError: if it is damaged, or holds anything else.
    """
    try:
        _check_steps(content)
        found = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error
    if type(found) is not dict or not all(type(key) is bytes for key in found):
        raise ValueError("no dictionary with texts as keys")
    return {key.decode("latin-1"): value for key, value in found.items()}


def pixels(value: Any) -> NDArray[np.uint8]:
    """The array that a pickle describes: a row of bytes for each picture.

    Raises:
        ValueError: if it describes anything else.
    """
    match value:
        case _Call(
            state=(1, (int(rows), int(columns)), _Call(arguments=(b"u1", 0, 1)), order, bytes(raw))
        ) if rows > 0 and columns > 0 and rows * columns == len(raw):
            flat = np.frombuffer(raw, dtype=np.uint8)
            return flat.reshape(rows, columns, order="F" if order is True else "C")
    raise ValueError("no array of bytes in rows")


def _check_steps(content: bytes) -> None:
    """Finds steps that take memory, time or the stack out of proportion to the file.

    Raises:
        UnpicklingError: if there is one.
        ValueError: if the file is damaged.
    """
    tuples = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of odd backslashes in texts
        for count, (step, argument, _) in enumerate(pickletools.genops(content)):
            tuples += step.name in _TUPLES
            if step.name not in _STEPS:
                raise pickle.UnpicklingError(f"the step {step.name}")
            if count >= _MOST_STEPS or tuples > _MOST_TUPLES:
                raise pickle.UnpicklingError("more steps than a file of CIFAR takes")
            if step.name == "LONG_BINPUT" and (argument or 0) > _MOST_STEPS:
                raise pickle.UnpicklingError(f"an object number {argument:,}")  # the memo's length
