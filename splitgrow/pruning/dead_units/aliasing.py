"""Aliasing in a trace: the tensors that may share memory, and those that an op may write into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import nn

from splitgrow.analysis.ops import entry_of, is_in_place_name
from splitgrow.analysis.trace import Step

Key: TypeAlias = tuple[int, tuple[Any, ...]]
"""A tensor of a trace: the number of the step that made it, and the indices that lead to it."""


class Memory:
    """Families of tensors that may share memory."""

    def __init__(self) -> None:
        self._families: dict[Key, set[Key]] = {}

    def relatives(self, key: Key) -> set[Key]:
        """A tensor and all tensors that may lie in the same memory."""
        return self._families.setdefault(key, {key})

    def relate(self, keys: Sequence[Key]) -> None:
        """Notes that tensors may lie in the same memory."""
        family: set[Key] = set()
        for key in keys:
            family |= self.relatives(key)
        self._families.update(dict.fromkeys(family, family))


def written_by(step: Step, module: nn.Module | None, operands: Sequence[Key]) -> Sequence[Key]:
    """The operands that an op may write into: all of them for an unknown op.

    Args:
        step: The op, which calls no layer that has weights.
        module: The module that it calls, if it calls one.
        operands: The tensors among its arguments.
    """
    target = type(module) if module is not None else step.target
    if not is_torchs(target) or entry_of(target) is None or "out" in step.kwargs:
        return operands
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    in_place = is_in_place_name(name) or name in _ASSIGNS or bool(getattr(module, "inplace", False))
    in_place = in_place or bool(step.kwargs.get("inplace"))
    if getattr(target, "__module__", "") == "torch.nn.functional":
        in_place = in_place or any(value is True for value in step.args[1:])  # by position
    return operands[:1] if in_place else ()


_ASSIGNS = frozenset(("setitem", "setattr"))
"""Ops that write into their first operand without the name of an in-place op."""


def is_torchs(target: Any) -> bool:
    """Whether a target is an op of torch or Python, whose name says how it acts."""
    if isinstance(target, str):
        return True
    origin = str(getattr(target, "__module__", None) or "torch")  # builtin functions have none
    return origin.partition(".")[0] in {"torch", "_operator", "builtins"}
