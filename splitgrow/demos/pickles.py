"""Reads pickles that hold plain data, and runs nothing of what they ask for.

A pickle is a program for a stack machine, and may name any function to call. So it is not
unpickled: a machine of our own goes through its steps, knows those that make plain data, and has
names instead of functions. Arrays are made of the bytes in the file once all that is said of them
is checked. The file bounds the memory: every step is in it, and the steps are counted.
"""

from __future__ import annotations

import math
import pickletools
import warnings
from collections.abc import Callable
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_STEPS = 1_000_000  # 50,000 labelled pictures with their names take a quarter of that


class NoDataError(ValueError):
    """A pickle that asks for something else than plain data."""


class _Name(Enum):
    """The functions and types that pickled arrays and bytes name; they stand for themselves."""

    RECONSTRUCT = "_reconstruct"
    NDARRAY = "ndarray"
    DTYPE = "dtype"
    ENCODE = "encode"


_MARK = object()
_BYTE = object()  # the one dtype that there is, of unsigned bytes
_NAMES = {
    "numpy.core.multiarray _reconstruct": _Name.RECONSTRUCT,
    "numpy._core.multiarray _reconstruct": _Name.RECONSTRUCT,
    "numpy ndarray": _Name.NDARRAY,
    "numpy dtype": _Name.DTYPE,
    "_codecs encode": _Name.ENCODE,
}
_NEW_ARRAY = ((_Name.NDARRAY, (0,), b"b"), (_Name.NDARRAY, (0,), "b"))
_NEW_BYTE = ((b"u1", 0, 1), ("u1", 0, 1))
_BYTE_STATES = ((3, b"|", None, None, None, -1, -1, 0), (3, "|", None, None, None, -1, -1, 0))


class _Array:
    """An array of bytes, empty until it is told its shape and values."""

    def __init__(self) -> None:
        self.values: NDArray[np.uint8] | None = None

    def fill(self, state: Any) -> None:
        """Takes the state of a pickled array: version, shape, dtype, order, bytes.

        Raises:
            NoDataError: if it is not one of an array of unsigned bytes.
        """
        if type(state) is not tuple or len(state) != 5 or state[0] != 1 or state[2] is not _BYTE:
            raise NoDataError("an array of something else than bytes")
        _, shape, _, by_columns, raw = state
        if type(raw) is not bytes or type(shape) is not tuple or len(shape) > 4:
            raise NoDataError("an array without shape or values")
        sizes = [size for size in shape if type(size) is int and 0 <= size <= len(raw)]
        if len(sizes) != len(shape) or math.prod(sizes) != len(raw):
            raise NoDataError(f"an array with {len(raw)} values of another shape")
        flat = np.frombuffer(raw, dtype=np.uint8)
        self.values = flat.reshape(sizes, order="F" if by_columns is True else "C")


def read(content: bytes) -> dict[str, Any]:
    """The dictionary that a pickle holds: of texts, bytes, numbers, lists, and arrays of bytes.

    Its keys are texts, whichever version of Python has written it. What lies in its lists is for
    the caller to check.

    Raises:
        NoDataError: if it asks for anything else.
        ValueError: if it is damaged.
    """
    machine = _Machine(len(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of odd backslashes in texts
        for count, (step, argument, _) in enumerate(pickletools.genops(content)):
            if count >= _MOST_STEPS:
                raise NoDataError(f"more than {_MOST_STEPS:,} steps")
            try:
                machine.take(step.name, argument)
            except (IndexError, KeyError) as error:  # of the stack, of the memo
                raise ValueError(f"its step {step.name} finds nothing to work on") from error
    if len(machine.stack) != 1 or type(machine.stack[0]) is not dict:
        raise NoDataError("no single dictionary")
    return {_text(key): _finished(value) for key, value in machine.stack[0].items()}


def _text(key: bytes | str) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else key


def _finished(value: Any) -> Any:
    if not isinstance(value, _Array):
        return value
    if value.values is None:
        raise NoDataError("an array without shape or values")
    return value.values


class _Machine:
    """The stack machine, with the steps that plain data take."""

    def __init__(self, budget: int) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._budget = budget  # of characters to encode: no text is in the file more often

    def take(self, step: str, argument: Any) -> None:
        """Takes one step.

        Raises:
            NoDataError: if it is not one that makes plain data.
        """
        if step in _PUSHING:
            self.stack.append(argument)
        elif step in _PUSHING_BYTES:
            self.stack.append(argument.encode("latin-1"))
        elif step in _CONSTANTS:
            self.stack.append(_CONSTANTS[step]())
        elif step in _STEPS:
            _STEPS[step](self, argument)
        elif step not in _WITHOUT_EFFECT:
            raise NoDataError(f"the step {step}")

    def marked(self) -> list[Any]:
        """What lies above the last mark; both are taken off."""
        items = []
        while (item := self.stack.pop()) is not _MARK:
            items.append(item)
        items.reverse()
        return items

    def tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError(count)
        items = tuple(self.stack[-count:])
        self.stack[-count:] = [items]

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise NoDataError("something else than a list to append to")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise NoDataError("something else than a dictionary to put items into")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in {bytes, str}:
                raise NoDataError("a key that is no text")
            target[key] = value

    def remember(self, key: int) -> None:
        self._memo[key] = self.stack[-1]

    def remember_next(self) -> None:
        self.remember(len(self._memo))

    def recall(self, key: int) -> None:
        self.stack.append(self._memo[key])

    def name(self, name: str) -> None:
        if name not in _NAMES:
            raise NoDataError(f"the name {name[:80]!r}")
        self.stack.append(_NAMES[name])

    def name_of_stack(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise NoDataError("a name that is no text")
        self.name(f"{module} {name}")

    def call(self) -> None:
        """Puts what a named function gives: a blank of an array, the dtype, or bytes.

        Raises:
            NoDataError: if it would give anything else.
        """
        arguments, function = self.stack.pop(), self.stack.pop()
        if function is _Name.RECONSTRUCT and arguments in _NEW_ARRAY:
            self.stack.append(_Array())
        elif function is _Name.DTYPE and arguments in _NEW_BYTE:
            self.stack.append(_BYTE)
        elif function is _Name.ENCODE and type(arguments) is tuple:
            self.stack.append(self._encoded(*arguments[:2]))
        else:
            raise NoDataError("a call of something that makes no bytes")

    def _encoded(self, text: Any = None, encoding: Any = None) -> bytes:
        if type(text) is not str or encoding != "latin1" or len(text) > self._budget:
            raise NoDataError("a call of something that makes no bytes")
        self._budget -= len(text)
        return text.encode("latin-1")

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, _Array):
            target.fill(state)
        elif target is not _BYTE or state not in _BYTE_STATES:
            raise NoDataError("a state for something that has none")


_PUSHING = frozenset(
    (
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
        *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINBYTES", "SHORT_BINBYTES"),
    )
)
_PUSHING_BYTES = frozenset(("STRING", "BINSTRING", "SHORT_BINSTRING"))  # texts of Python 2
_WITHOUT_EFFECT = frozenset(("PROTO", "FRAME", "STOP"))
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": dict,
    "MARK": lambda: _MARK,
}


def _make_dict(machine: _Machine) -> None:
    items = machine.marked()
    machine.stack.append({})
    machine.set_items(items)


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "LIST": lambda machine, _: machine.stack.append(machine.marked()),
    "TUPLE": lambda machine, _: machine.stack.append(tuple(machine.marked())),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "DICT": lambda machine, _: _make_dict(machine),
    "APPEND": lambda machine, _: machine.append([machine.stack.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.marked()),
    "SETITEM": lambda machine, _: machine.set_items([machine.stack.pop(-2), machine.stack.pop()]),
    "SETITEMS": lambda machine, _: machine.set_items(machine.marked()),
    "PUT": _Machine.remember,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": lambda machine, _: machine.remember_next(),
    "GET": _Machine.recall,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": lambda machine, _: machine.name_of_stack(),
    "REDUCE": lambda machine, _: machine.call(),
    "BUILD": lambda machine, _: machine.build(),
}
