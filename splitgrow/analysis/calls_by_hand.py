"""Layers that forward calls by their function and tensors: ``F.linear(x, fc.weight, fc.bias)``.

That is the layer's own call, written differently. Grown, the layer answers for the tensors with
those of today. Code that holds the layer of today in a closure would go on with its tensors. So a
look-alike shows tensors of its own, and only these count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from splitgrow.analysis.stand_ins import Copies
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
        self._shown: dict[int, Tensor] = {}
        """The tensors of look-alikes and of grown layers, by their ids, which must stay theirs."""
        self._standing_in = False

    def show_own_(self, path: str, stand_in: nn.Module, copies: Copies) -> None:
        """Gives the look-alike of a Linear parameters of its own, with the same memory."""
        self._standing_in = True
        if not _is_linear(stand_in):
            return
        own = vars(stand_in)
        own["_parameters"] = dict(own["_parameters"])
        for key, tensor in own["_parameters"].items():
            if tensor is not None:
                shown = nn.Parameter(tensor.detach(), tensor.requires_grad)
                own["_parameters"][key] = self._shown[id(shown)] = shown
                copies.add(shown, f"{path}.{key}")

    def note(self, first: nn.Module, key: str, whole: Any) -> None:
        """Learns a tensor of a grown layer, given by its original block."""
        paths = (path for path, (module, _) in self.layers.items() if stock(module) is first)
        path = next(paths, None)
        if path is not None and isinstance(whole, Tensor):
            self._shown[id(whole)] = whole
            self._owners[id(whole)] = f"{path}.{key}"

    def called(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[[], Any] | None:
        """The call of a layer for which a call of `F.linear` stands; None if it is none."""
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | dict(kwargs)
        path, _, key = self._owners.get(id(given.get("weight")), "").rpartition(".")
        if key != "weight" or path not in self.layers:
            return None
        module, forward = self.layers[path]
        layer: Any = stock(module)
        if not _is_linear(layer) or not self._is_shown(given["weight"]):
            return None
        x, bias = given["input"], given.get("bias")
        if layer.bias is None:
            return partial(forward, x) if bias is None else lambda: forward(x) + bias
        its_own = self._owners.get(id(bias)) == f"{path}.bias" and self._is_shown(bias)
        return partial(forward, x) if its_own else None

    def _is_shown(self, tensor: Any) -> bool:
        return not self._standing_in or id(tensor) in self._shown


def _is_linear(layer: nn.Module) -> bool:
    return type(layer).forward is nn.Linear.forward
