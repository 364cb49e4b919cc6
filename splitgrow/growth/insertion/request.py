"""The request for an insertion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from splitgrow.layers.insertion_wrapper import Form

INSERTION_KINDS: dict[str, Form] = {
    "identity": "chain",
    "residual": "residual",
    "gate": "gate",
    "block": "block",
    "stack": "block",
    "interpolate": "block",
    "fade": "chain",
    "replacement": "beside",
}
"""The kinds of insertion, with the function of each."""

EXPERTS = "experts"
"""The kind of insertion by which a mixture of experts grows, which is no request for a layer."""
FORMS: dict[str, Form] = {**INSERTION_KINDS, EXPERTS: "experts"}
"""The function of each kind of insertion, those of other operations as well."""

COPIES = ("block", "stack", "interpolate")
"""The kinds that copy a block."""
INEXACT = ("stack", "interpolate")
"""The kinds that change what the model computes."""

_GIVEN = ("fade", "replacement")
"""The kinds that need a module."""

After = int | str | tuple[str, str]
AnyAfter = After | list[After]
"""One place for an insertion, or several."""


@dataclass(frozen=True)
class Wanted:
    """A request for an insertion.

    Attributes:
        kind: One of `KINDS`.
        module: The branch of a residual, or the module to fade in, if one was given.
        form: The shape of a branch that is made here: "plain" or "bottleneck".
        kernel_size: The kernel size of convolutions that are made here.
        activation: The activation of layers that are made here; None for the one in front of them.
    """

    kind: str
    module: nn.Module | None
    form: str
    kernel_size: int
    activation: nn.Module | None

    @classmethod
    def of(
        cls,
        kind: str,
        *,
        module: nn.Module | None = None,
        form: str = "plain",
        kernel_size: int = 3,
        activation: nn.Module | None = None,
    ) -> Wanted:
        """The request for the options of `insert_layer`."""
        return cls(kind, module, form, kernel_size, activation)

    def check(self) -> None:
        """Makes sure that the options are valid and fit each other.

        Raises:
            TypeError: If one is of another type.
            ValueError: If there is no such kind or form, or the options do not fit each other.
        """
        if self.kind not in INSERTION_KINDS:
            raise ValueError(f"no kind {self.kind!r}; there are {', '.join(INSERTION_KINDS)}")
        if self.form not in {"plain", "bottleneck"}:
            raise ValueError(f"no form {self.form!r}; there are plain and bottleneck")
        for name, value in (("module", self.module), ("activation", self.activation)):
            if value is not None and not isinstance(value, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, got {type(value).__name__}")
        if self.module is not None and self.kind not in {"residual", *_GIVEN}:
            raise ValueError(
                f"a module can be given for a residual, a fade or a replacement, not for "
                f"kind={self.kind!r}"
            )
        if self.module is None and self.kind in _GIVEN:
            raise ValueError(f"kind={self.kind!r} needs the module that is to be faded in")
        size = self.kernel_size
        if isinstance(size, bool) or not isinstance(size, int):
            raise TypeError(f"kernel_size must be an int, got {size!r}")
        if size < 1 or size % 2 == 0:
            raise ValueError(f"kernel_size (={size}) must be odd, so that space keeps its size")

    @property
    def options(self) -> dict[str, Any]:
        """The options that would request the same insertion again, as plain data."""
        given = type(self.module).__name__ if self.module is not None else None
        activation = type(self.activation).__name__ if self.activation is not None else None
        return {
            "form": self.form,
            "kernel_size": self.kernel_size,
            "module": given,
            "activation": activation,
        }
