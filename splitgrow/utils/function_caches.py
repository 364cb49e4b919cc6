"""Functions that remember their results: no tensor without values may stay in them.

Models cache tables of positions by ``functools.lru_cache``. A run on fake tensors would leave its
own there, and the next call of the model would compute with them.
"""

from __future__ import annotations

import functools
import gc
import sys
import weakref
from typing import Any

from torch._subclasses.fake_tensor import FakeTensor

from splitgrow.utils.rollback import Undo

_known: list[weakref.ref[Any]] = []
_looked_at: tuple[int, int] = (0, 0)


def forget_fake_results_(undo: Undo, *, look: bool) -> None:
    """Empties, when steps are undone, the caches of functions in which fake tensors have come.

    The next call computes what was forgotten anew, so nothing else changes.

    Args:
        undo: Where the step is noted.
        look: Whether to look for functions even if no module was imported since.
    """
    before = [(function, function.cache_info().misses) for function in _functions(look=look)]

    def forget() -> None:
        for function, misses in before:
            if function.cache_info().misses != misses and _holds_fake(function):
                function.cache_clear()

    undo.on_failure(forget)


def _functions(*, look: bool) -> list[Any]:
    """All functions with such a cache; a look through all objects takes a tenth of a second."""
    global _looked_at  # noqa: PLW0603
    now = (len(sys.modules), len(vars(sys.modules["__main__"])))
    if look or now != _looked_at:
        kind = functools._lru_cache_wrapper  # noqa: SLF001
        _known[:] = [weakref.ref(found) for found in gc.get_objects() if type(found) is kind]
        _looked_at = now
    return [function for ref in _known if (function := ref()) is not None]


def _holds_fake(held: Any, depth: int = 4) -> bool:
    """Whether a fake tensor is among a function's results, or in tuples, lists or dicts there."""
    return any(
        isinstance(inner, FakeTensor)
        or (depth and isinstance(inner, (tuple, list, dict)) and _holds_fake(inner, depth - 1))
        for inner in gc.get_referents(held)
    )
