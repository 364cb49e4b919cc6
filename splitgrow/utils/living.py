"""Living objects by their types, where nothing lists them."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any


def living(wanted: Callable[[type], bool]) -> list[Any]:
    """All objects of the types that are wanted.

    Each type is asked once, and never an object: `isinstance` would ask one for its `__class__`,
    and some answer by a call.

    Args:
        wanted: Whether a type is.
    """
    objects = gc.get_objects()
    kinds = {kind for kind in set(map(type, objects)) if wanted(kind)}
    return [item for item in objects if type(item) in kinds] if kinds else []
