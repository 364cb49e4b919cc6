"""Checks of arguments that many calls share."""

from __future__ import annotations


def positive_int(name: str, value: object) -> int:
    """A number that counts.

    Args:
        name: The argument's name, for the error.
        value: The argument.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is not positive.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value!r}")
    return value
