"""Docstrings as the site wants them: examples as code, formulas as text."""

from __future__ import annotations

import re
from typing import Any

import griffe

SIGNS = {
    r"\mu": "μ",
    r"\sigma": "σ",
    r"\gamma": "γ",
    r"\lambda": "λ",
    r"\rho": "ρ",
    r"\odot": "⊙",
    r"\sum": "Σ",
    r"\|": "‖",
    r"\alpha": "α",
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
