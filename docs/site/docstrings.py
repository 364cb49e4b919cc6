"""Docstrings as the site wants them: examples as code, formulas as text."""

from __future__ import annotations

import html
import re
from typing import Any

import griffe

LETTERS = ("alpha", "gamma", "lambda", "mu", "rho", "sigma")
SIGNS = {
    **{rf"\{name}": html.unescape(f"&{name};") for name in LETTERS},
    r"\odot": "⊙",
    r"\sum": "Σ",
    r"\|": "‖",
}
MATH = re.compile(r":math:`([^`]+)`|\.\. math:: ([^\n]+)")


class Docstrings(griffe.Extension):
    """Rewrites each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Griffe calls this for each module, class, function and attribute."""
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = MATH.sub(_written, text)


def _written(match: re.Match[str]) -> str:
    formula = match[1] or match[2]
    for name, sign in SIGNS.items():
        formula = formula.replace(name, sign)
    return f"`{formula}`"
