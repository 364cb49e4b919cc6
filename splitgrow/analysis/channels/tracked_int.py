"""Whole numbers that remember where they came from: `x.shape[1] // 2` is known to follow a width.

A `Tracked` number is an int like any other to the user's code. Numbers computed from it are tracked
as well, and it tells its keeper when it is compared or turned into a plain value.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Protocol


def plain_value(number: Any) -> Any:
    """The plain number in place of a tracked one that is used as a mere value."""
    return number


class Keeper(Protocol):
    """Remembers the uses of tracked numbers."""

    def number(
        self, target: Callable[..., Any], args: tuple[Any, ...], value: Any, name: str = ""
    ) -> Any:
        """Traces ``target(*args) == value`` and returns the value, tracked if it is an int."""


class Tracked(int):
    """An int that tells its keeper about each of its uses."""

    keeper: Keeper
    origin: Any

    @classmethod
    def of(cls, value: int, keeper: Keeper, origin: Any) -> Tracked:
        """The number, with its origin in the keeper's own terms."""
        number = cls(value)
        number.keeper, number.origin = keeper, origin
        return number

    def _used(self, name: str) -> int:
        value = int.__int__(self)
        self.keeper.number(plain_value, (self,), value, name)
        return value

    def __hash__(self) -> int:
        return hash(self._used("hash"))

    def __int__(self) -> int:
        return self._used("int")

    def __float__(self) -> float:
        return float(self._used("float"))

    def __round__(self, ndigits: Any = None) -> Any:
        return self if ndigits is None or ndigits >= 0 else round(self._used("round"), ndigits)

    def __trunc__(self) -> Any:
        return self

    def __floor__(self) -> Any:
        return self

    def __ceil__(self) -> Any:
        return self

    def __pos__(self) -> Any:
        return self

    def __abs__(self) -> Any:
        return self if int.__ge__(self, 0) else -self

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    def conjugate(self) -> Any:
        """The number itself."""
        return self

    def __reduce__(self) -> Any:
        return int, (int.__int__(self),)

    def __copy__(self) -> int:
        return int.__int__(self)

    def __deepcopy__(self, memo: Any) -> int:
        return int.__int__(self)


def _binary(name: str, target: Callable[..., Any], *, swapped: bool = False) -> Any:
    own: Any = getattr(int, name)

    def method(self: Tracked, other: Any, *modulus: Any) -> Any:
        if modulus:
            return pow(self._used(target.__name__), other, *modulus)
        if isinstance(other, int):
            args = (other, self) if swapped else (self, other)
            return self.keeper.number(target, args, own(self, other))
        if isinstance(other, float):
            value = self._used(target.__name__)
            return target(other, value) if swapped else target(value, other)
        if target in (operator.eq, operator.ne):
            return NotImplemented
        return own(self._used(target.__name__), other)

    method.__name__ = name
    return method


def _unary(name: str, target: Callable[..., Any]) -> Any:
    own: Any = getattr(int, name)

    def method(self: Tracked) -> Any:
        return self.keeper.number(target, (self,), own(self))

    method.__name__ = name
    return method


_ARITHMETIC: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "truediv": operator.truediv,
    "pow": operator.pow,
    "lshift": operator.lshift,
    "rshift": operator.rshift,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
}
_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)
_UNARY: dict[str, Callable[..., Any]] = {
    "neg": operator.neg,
    "invert": operator.invert,
    "bool": operator.truth,
}

for _name, _target in _ARITHMETIC.items():
    setattr(Tracked, f"__{_name}__", _binary(f"__{_name}__", _target))
    setattr(Tracked, f"__r{_name}__", _binary(f"__r{_name}__", _target, swapped=True))
for _comparison in _COMPARISONS:
    _name = f"__{_comparison.__name__}__"
    setattr(Tracked, _name, _binary(_name, _comparison))
for _name, _operation in _UNARY.items():
    setattr(Tracked, f"__{_name}__", _unary(f"__{_name}__", _operation))


def _mere_use(name: str) -> Any:
    """A method or property of plain ints, for which the number is used as a mere value."""
    own: Any = getattr(int, name)
    if not callable(own):
        return property(lambda self: getattr(self._used(name), name))

    def method(self: Tracked, *args: Any, **kwargs: Any) -> Any:
        return own(self._used(name.strip("_")), *args, **kwargs)

    method.__name__ = name
    return method


# All objects make texts of themselves: messages name widths, and nothing depends on these.
_OF_OBJECTS = frozenset(dir(object))
_SAME = frozenset(("from_bytes", "__index__", "__getnewargs__", "real", "numerator"))
"""Names that make other numbers, are never called, or are the number itself."""

for _name in dir(int):
    if _name not in Tracked.__dict__ and _name not in _OF_OBJECTS | _SAME:
        setattr(Tracked, _name, _mere_use(_name))
for _name in ("real", "numerator"):
    setattr(Tracked, _name, property(lambda self: self))
