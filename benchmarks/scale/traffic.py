"""How many bytes a process sends: to the others by collectives, and as words to the store."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def _gather(_: int, whole: int, world: int) -> float:
    return whole * (world - 1) / world


def _scatter(given: int, _: int, world: int) -> float:
    return given * (world - 1) / world


def _reduce(given: int, _: int, world: int) -> float:
    return 2 * given * (world - 1) / world


def _spread(given: int, _: int, world: int) -> float:
    return given * (world - 1) / world


SENT: dict[str, Callable[[int, int, int], float]] = {
    "allgather": _gather,
    "all_gather": _gather,
    "reduce_scatter": _scatter,
    "allreduce": _reduce,
    "all_reduce": _reduce,
    "broadcast": _spread,
    "scatter": _spread,
    "alltoall": _spread,
    "all_to_all": _spread,
}
"""Bytes that a rank sends, on average over the ranks, where each sends no more than it must: of the
bytes that go in, those of the result, and the number of ranks."""
_SPACES = ("c10d", "_c10d_functional")
_SILENT = ("wait", "barrier", "wrap_tensor")


class Traffic(TorchDispatchMode):
    """Counts the bytes of all collectives inside a ``with`` block.

    Attributes:
        sent: Bytes that a rank sends.
        calls: How often each collective ran.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sent = 0.0
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Runs an op, and counts it if it is a collective."""
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented  # it runs collectives of its own, which come here, too
        result = func(*args, **(kwargs or {}))
        if func.namespace in _SPACES:
            self._count(func.__name__, args, result)
        return result

    def _count(self, name: str, args: Any, result: Any) -> None:
        if any(part in name for part in _SILENT):
            return
        rule = next((rule for part, rule in SENT.items() if part in name), None)
        if rule is None:
            raise NotImplementedError(f"how much does {name} send?")
        world = dist.get_world_size()
        given, made = _size(args), _size(result)
        # Those of c10d are given the tensors for their results, too.
        if name.startswith(("_allgather_base", "allgather", "_reduce_scatter", "reduce_scatter")):
            given, made = _size(args[1]), _size(args[0])
        self.calls[name] += 1
        self.sent += rule(given, made, world)


def _size(values: Any) -> int:
    tensors = [each for each in pytree.tree_leaves(values) if isinstance(each, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Words:
    """A store as processes talk by it, that counts what this process puts there.

    Attributes:
        sent: Bytes of keys and values so far.

    Args:
        store: The store.
    """

    def __init__(self, store: Any) -> None:
        self._store, self.sent = store, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def set(self, key: str, value: Any) -> None:
        """Notes a word's length, and puts it there."""
        self.sent += len(key) + len(value)
        self._store.set(key, value)

    def compare_set(self, key: str, expected: Any, desired: Any) -> Any:
        """The same if the value is as expected."""
        self.sent += len(key) + len(desired)
        return self._store.compare_set(key, expected, desired)
