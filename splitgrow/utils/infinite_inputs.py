"""Layers that read infinite values or NaN: zero times the output of a new unit is NaN there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Infinities:
    """Notes the layers that read values that are not finite.

    Args:
        layers: The layers by name. Their attributes must be restored afterwards.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        self._layers = layers
        self.readers: set[str] = set()

    def __enter__(self) -> None:
        """Looks at the inputs of each layer from here on."""
        for name, layer in self._layers.items():
            self._watch(name, layer)

    def __exit__(self, *error: object) -> None:
        """Does nothing: the attributes are restored with all others."""

    def _watch(self, name: str, layer: nn.Module) -> None:
        own, call = vars(layer), layer.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not all(map(_is_finite, (*args, *kwargs.values()))):
                self.readers.add(name)
            return call(*args, **kwargs)

        own["forward"] = forward


def _is_finite(value: object) -> bool:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_meta:
        return True
    # A sum takes less time than a look at each value, and a finite sum has finite terms.
    total = value.sum(dtype=torch.promote_types(value.dtype, torch.float32))
    return bool(total.isfinite()) or bool(value.isfinite().all())
