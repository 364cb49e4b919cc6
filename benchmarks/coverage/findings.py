"""What is found out about one model, and what that comes to."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any

EXACT = 1e-10
"""Largest relative difference that rounding may make in double precision."""
ROUNDED = 1e-5
"""The same, where the model itself turns its values into single precision on the way."""
LOOSEST = 1e-3
"""The most that is ever allowed, to models that run in single precision only and magnify rounding.

Such a model is allowed ten times what rounding its weights does to its outputs.
"""
VISIBLE = 1e-9
"""Smallest relative change of the outputs that shows that they depend on the new units."""

LONG = 400
"""Characters of the reason for a model's status; of the reason for a layer, half of that."""

STATUSES = {
    "verified": "every law holds, in real values",
    "shapes verified": "grown and merged; too large for real values here, so shapes only",
    "fixed": "analysed, but no layer can grow",
    "refused": "splitgrow says that it cannot, and why",
    "blind": "grown, but the outputs did not change with the new units, so nothing is shown",
    "wrong": "a law is broken, or splitgrow failed",
    "unbuildable": "the model itself does not run here",
    "timeout": "not finished in time",
}


@dataclass
class Findings:
    """One model's record.

    Attributes:
        name: The model.
        family: The module that defines it.
        tags: What else it is counted as.
        parameters: How many it has.
        values: "float64" or "float32" if the laws were checked in real values, or "shapes only".
        inputs: The shapes of the tensors that it was fed.
        modules: How many convolutions and linear layers it has.
        kinds: For each kind of layer: how many can grow, and how many there are.
        grown: How many layers grew.
        fixed: How many layers are fixed for each reason.
        laws: What was measured; see `verdict`.
        tolerance: The difference that counts as rounding.
        fuse: "ok", or why torch.fx makes no graph of it.
        seconds: How long each step took.
        notes: What else there is to know.
        roles: For each role of its layers whether it grows; see `roles.Role`.
        peer: What torch-pruning makes of the same model.
        status: One of `STATUSES`.
        reason: Why it is not verified.
    """

    name: str
    family: str = ""
    tags: list[str] = field(default_factory=list)
    parameters: int = 0
    values: str = ""
    inputs: list[list[int]] = field(default_factory=list)
    modules: int = 0
    kinds: dict[str, list[int]] = field(default_factory=dict)
    grown: int = 0
    fixed: dict[str, int] = field(default_factory=dict)
    laws: dict[str, float] = field(default_factory=dict)
    tolerance: float = EXACT
    fuse: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    roles: dict[str, dict[str, Any]] = field(default_factory=dict)
    peer: dict[str, Any] = field(default_factory=dict)
    status: str = ""
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The record as JSON data."""
        return asdict(self)

    def conclude(self, status: str, reason: str = "") -> None:
        """Sets the status, and the reason as far as it can be read elsewhere."""
        self.status, self.reason = status, tidy(reason, LONG)


def verdict(found: Findings) -> tuple[str, str]:
    """The status that follows from what was measured, and the reason.

    The laws are "same" (how far the outputs moved by growing), "changed" (how far by giving the new
    units values), "past" (1 if the old network came back bit for bit), "merge" and "fuse" (how far
    those are from the grown model), "plain" (1 if nothing of splitgrow was left after merging).
    """
    broken = _broken(found)
    if broken:
        return "wrong", "; ".join(broken)
    if not found.grown:
        return "fixed", "no layer can grow"
    if found.values == "shapes only":
        return "shapes verified", ""
    missing = {"same", "changed", "past", "merge", "plain"} - found.laws.keys()
    if missing:
        return "wrong", f"not measured: {', '.join(sorted(missing))}"
    if not found.laws["changed"] > VISIBLE:
        return "blind", f"the outputs changed by {found.laws['changed']:.0e} with the new units"
    return "verified", ""


def _broken(found: Findings) -> list[str]:
    """The laws that do not hold, in words."""
    names = {
        "same": "growing changed the outputs",
        "merge": "the merged model differs",
        "fuse": "the fused model differs",
    }
    broken = [
        f"{text} by {found.laws[law]:.1e} of the largest (allowed: {found.tolerance:.0e})"
        for law, text in names.items()
        if law in found.laws and not found.laws[law] <= found.tolerance
    ]
    if not found.laws.get("past", 1):
        broken.append("the old network did not come back bit for bit")
    if not found.laws.get("plain", 1):
        broken.append("the merged model still has parts of splitgrow, or another class")
    return broken


def described(error: BaseException) -> str:
    """An error in one line."""
    return tidy(f"{type(error).__name__}: {error}", LONG)


def tidy(text: str, length: int = LONG // 2) -> str:
    """A text in one line, of limited length, without the folders of this machine."""
    text = re.sub(r"[\w.+-]*(?:/[\w.+-]+)+/(?:site-packages|lib/python[\d.]+)/", "", text)
    text = re.sub(r"(?:/[\w.+-]+){2,}/(?=[\w-]+/[\w.-]+\.py)", "", text)
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 3] + "..."
