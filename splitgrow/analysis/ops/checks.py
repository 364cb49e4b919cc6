"""Checks of the rules and targets that a user registers."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from torch import Tensor, nn


def check_targets(targets: tuple[Any, ...]) -> None:
    """Checks that there are targets, and that each could be that of an op.

    Raises:
        TypeError: If one is of another type.
        ValueError: If there is none, or one names nothing.
    """
    if not targets:
        raise ValueError("register_op needs a target: a function, a method's name or a module type")
    for target in targets:
        if not isinstance(target, str):
            if not callable(target) or isinstance(target, nn.Module):
                raise TypeError(
                    f"a target is a function, the name of a method, a module type or a dotted "
                    f"name, got {target!r}"
                )
        elif not all(part.isidentifier() for part in target.split(".")):
            raise ValueError(f"{target!r} is neither the name of a method nor a dotted name")
        elif "." not in target and not hasattr(Tensor, target):
            close = difflib.get_close_matches(target, dir(Tensor), 3)
            hint = f"; there is {', '.join(close)}" if close else ""
            raise ValueError(f"tensors have no method {target!r}{hint}")


def check_rule(rule: Any) -> None:
    """Checks that a rule is a function of one argument.

    Raises:
        TypeError: If it is not.
    """
    if not callable(rule) or isinstance(rule, type):
        raise TypeError(f"a rule is a function of an Op that returns its axes, got {rule!r}")
    try:
        inspect.signature(rule).bind(None)
    except ValueError:  # its arguments are not known
        return
    except TypeError as error:
        raise TypeError(f"a rule takes one argument, the Op: {rule_name(rule)}: {error}") from error


def rule_name(rule: Any) -> str:
    """The name of a rule."""
    return str(getattr(rule, "__name__", rule))
