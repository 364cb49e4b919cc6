"""The first values of new blocks, one function for each way."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

Initializer = Callable[[nn.Module, str], None]
"""Sets a block's values in place, given the block and what it is for ("new" or "helper")."""


def zero(block: nn.Module, kind: str) -> None:
    """Helpers zero, new units as torch initialises a layer of their shape.

    The old outputs are unchanged, since helpers add nothing yet. Helpers learn from the first step
    and new units from the second; were both zero, neither would ever learn.
    """
    if kind == "helper":
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.zero_()


_INITIALIZERS: dict[str, Initializer] = {"zero": zero}


def initializer_of(name: str) -> Initializer:
    """The initializer of a name.

    Raises:
        ValueError: If there is none.
    """
    if name not in _INITIALIZERS:
        raise ValueError(f"no initializer {name!r}; there are {', '.join(sorted(_INITIALIZERS))}")
    return _INITIALIZERS[name]
