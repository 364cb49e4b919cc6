"""Layers that forward calls by their function and tensors: ``F.linear(x, fc.weight, fc.bias)``.

That is the layer's own call, written differently. Grown, the layer answers for the tensors with
those of today.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from splitgrow.layers.split_layer import stock


class ByHand:
    """The layers of a model, and whether a call of a function is one of theirs.

    Attributes:
        layers: By path each layer, grown or not, and its call as it is traced.

    Args:
        owners: The paths of the model's tensors by their ids; learns those of grown layers.
    """

    def __init__(self, owners: dict[int, str]) -> None:
        self.layers: dict[str, tuple[nn.Module, Callable[..., Any]]] = {}
        self._owners = owners
        self._alive: list[Tensor] = []
        """The tensors of grown layers, whose ids must stay theirs."""

    def note(self, first: nn.Module, key: str, whole: Any) -> None:
        """Learns a tensor of a grown layer, given by its original block."""
        paths = (path for path, (module, _) in self.layers.items() if stock(module) is first)
        path = next(paths, None)
        if path is not None and isinstance(whole, Tensor):
            self._alive.append(whole)
            self._owners[id(whole)] = f"{path}.{key}"

    def called(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], Any] | None:
        """The call of a layer for which a call of `F.linear` stands; None if it is none."""
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs)
        path, _, key = self._owners.get(id(given.get("weight")), "").rpartition(".")
        if key != "weight" or path not in self.layers:
            return None
        module, forward = self.layers[path]
        layer: Any = stock(module)
        if type(layer).forward is not nn.Linear.forward:
            return None
        bias = given.get("bias")
        own = self._owners.get(id(bias)) if bias is not None else None
        if own != (f"{path}.bias" if layer.bias is not None else None):
            return None
        return partial(forward, given["input"])
