"""The record of a layer that is taken out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerRemoval:
    """A layer, or a whole block, that an edit takes out of the network.

    Attributes:
        name: The module path.
        kind: The kind of the insertion that it was, as in `Insertion`; empty for a module of the
            model itself, in whose place an Identity is.
        type: The types of its layers.
        parameters: The number of parameters that go.
        edit: The number of the edit that inserted it; 0 for a module of the model itself.
    """

    name: str
    kind: str
    type: str
    parameters: int
    edit: int = 0

    def __str__(self) -> str:
        what = f"the {self.kind} of edit {self.edit}" if self.kind else "an Identity is there now"
        return f"takes out {self.name} ({what}): {self.type}, {self.parameters:,} parameters"

    def has(self, path: str) -> bool:
        """Whether it is the module of a path, or a module around that."""
        return path == self.name or path.startswith(f"{self.name}.")
