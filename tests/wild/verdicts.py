"""The possible results of a program, and the errors that are refusals."""

from __future__ import annotations

import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import splitgrow

Result = TypeVar("Result")
LIBRARY = str(Path(splitgrow.__file__).parent)
REFUSALS = (splitgrow.SplitGrowError, ValueError, TypeError)
SHORTEST = 16
"""Characters of a reason that explains something."""


class Refused(Exception):  # noqa: N818 - a verdict
    """The library says that it does not do it, and why."""


class Wrong(Exception):  # noqa: N818 - a verdict
    """A promise is broken: what kind, and how."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind, self.text = kind, text


@dataclass(frozen=True)
class Verdict:
    """What came of a program.

    Attributes:
        seed: Of the program.
        verdict: "exact", "fixed", "refused" or "WRONG".
        kind: What kind of wrong; or at what it was refused.
        text: The reason, or what is wrong.
        layer: The layer that was to grow.
        seconds: How long it took.
    """

    seed: int
    verdict: str
    kind: str = ""
    text: str = ""
    layer: str = ""
    seconds: float = 0.0


def asked(what: str, call: Callable[[], Result]) -> Result:
    """Asks the library for something.

    Raises:
        Refused: If it refuses on purpose.
        Wrong: If anything else is raised, or a refusal explains nothing.
    """
    try:
        return call()
    except Exception as error:
        if not on_purpose(error):
            raise Wrong("internal", f"{what}: {described(error)}") from error
        if len(str(error)) < SHORTEST:
            raise Wrong("internal", f"{what}: explains nothing: {error!r}") from error
        raise Refused(f"{what}: {error}") from error


def on_purpose(error: Exception) -> bool:
    """Whether it is a refusal, and not something that was run into."""
    if isinstance(error, splitgrow.SplitGrowError):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    raised = (last.line or "").startswith("raise") and last.filename.startswith(LIBRARY)
    return isinstance(error, REFUSALS) and raised


def described(error: Exception) -> str:
    """An error with the library's line that it came through, in one line."""
    places = [
        f for f in traceback.extract_tb(error.__traceback__) if f.filename.startswith(LIBRARY)
    ]
    where = f" at {Path(places[-1].filename).name}:{places[-1].name}" if places else ""
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}{where}: {text[:200]}"


_GENERAL = (
    (r"program_\d+\.py:\d+", "PLACE"),
    (r"\b(op|[mxtuvq]|closing|apply|Own|Block|Twice|Made)\d+(_\w+)?\b", "NAME"),
    (r"-?\d+(\.\d+)?(e-?\d+)?", "N"),
    (r"\(N(, N)*,?\)|\[N(, N)*\]", "SIZES"),
    (r"NAME(\.(layer|original|N|parametrizations|weight))*", "NAME"),
    (r"\s+", " "),
)


def general(text: str) -> str:
    """A reason without what is particular to its program, so that reasons can be counted."""
    for pattern, instead in _GENERAL:
        text = re.sub(pattern, instead, text)
    return text[:200]
