"""The shapes of products that are computed, of which a weight's gradient is one."""

from __future__ import annotations

from typing import Any

from helpers import tensors_of
from torch.utils._python_dispatch import TorchDispatchMode


class ProductShapes(TorchDispatchMode):
    """Notes the shapes of all results of products and convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if "mm" in str(func) or "convolution" in str(func):
            self.seen |= {tuple(leaf.shape) for leaf in tensors_of(made) if leaf is not None}
        return made
