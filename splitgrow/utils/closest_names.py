"""Names that are like one that does not exist, for errors."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """A hint at the names that are like one that there is not.

    Args:
        name: The name that somebody gave.
        known: The names that there are.
        otherwise: Where to look if none is like it.
    """
    close = difflib.get_close_matches(name, [*known], n=3, cutoff=0.4)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else otherwise
