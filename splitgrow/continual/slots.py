"""The places where a model keeps its tensors, under names that growth does not change.

A grown layer's blocks are ``path:0``, ``path:1``, ...; a layer that has not grown is ``path:0``, so
that its tensors have the same names before and after its growth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from splitgrow.layers.split_layer import SplitLayer


@dataclass(frozen=True, eq=False)
class Slot:
    """A tensor of a model, by the places where the model keeps it.

    Attributes:
        name: Its name, which stays the same when the model grows.
        places: The dictionaries that have it, each with its key there: more than one where modules
            share a parameter.
        block: The block that it belongs to: "original", "new" or "helper".
        shared: Whether tasks share it, each weight by itself: a tensor of two or more dimensions.
            Every task has its own copy of the others: biases and norms' tensors.
    """

    name: str
    places: tuple[tuple[dict[str, Any], str], ...]
    block: str
    shared: bool

    @property
    def trains(self) -> bool:
        """Whether it is a parameter, not a buffer."""
        return isinstance(self.tensor, nn.Parameter)

    @property
    def tensor(self) -> Tensor:
        """The tensor in the model at present."""
        where, key = self.places[0]
        tensor: Tensor = where[key]
        return tensor


def slots_of(model: nn.Module) -> dict[str, Slot]:
    """The slots of a model by their names, in order."""
    found: dict[int, tuple[str, list[tuple[dict[str, Any], str]], str, bool]] = {}
    for module, name, block in _named(model):
        own = vars(module)
        for kind in ("_parameters", "_buffers"):
            for key, tensor in own[kind].items():
                if tensor is None or key in own["_non_persistent_buffers_set"]:
                    continue
                shared = kind == "_parameters" and tensor.dim() > 1
                entry = found.setdefault(id(tensor), (f"{name}.{key}", [], block, shared))
                entry[1].append((own[kind], key))
    return {
        name: Slot(name, tuple(places), block, shared)
        for name, places, block, shared in found.values()
    }


def _named(model: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Modules with their names and roles, each once."""
    blocks: dict[nn.Module, tuple[str, str]] = {}
    for path, module in model.named_modules():
        if isinstance(module, SplitLayer):
            for index, (block, what) in enumerate(zip(module, module.blocks, strict=True)):
                for inner, part in block.named_modules():
                    blocks[part] = f"{path}.{inner}".removesuffix(".") + f":{index}", what.kind
        elif module in blocks:
            yield module, *blocks[module]
        else:
            yield module, f"{path}:0", "original"


@contextmanager
def substituted(slots: Mapping[str, Slot], values: Mapping[str, Tensor]) -> Iterator[None]:
    """Makes a model read other tensors in place of its own, inside a ``with`` block.

    Args:
        slots: The model's slots.
        values: Tensors by the names of slots. The model's writes into them stay there.
    """
    kept = [(where, key, where[key]) for name in values for where, key in slots[name].places]
    try:
        for name, value in values.items():
            for where, key in slots[name].places:
                where[key] = value
        yield
    finally:
        for where, key, tensor in kept:
            where[key] = tensor
