"""Entries of a state_dict that stop loaders which know nothing of growth.

``from_pretrained`` passes over tensors that it misses or does not know, with a warning. So it would
make another network of a grown model's tensors. But it takes no tensor of another shape. So the
plain names of grown layers, and one more name, get empty tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

from torch import Tensor, nn

from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import plain_name

_KEPT = "grown_by_splitgrow.use_splitgrow_save_pretrained."
"""The prefix under which a tensor is kept whose name has an empty one; loaders show it."""


def with_guards(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
    """A grown model's state_dict that no other loader takes for a plain model's.

    Of tied tensors it has one, as safetensors wants it.

    Args:
        model: The model.
        state: Its state_dict. It is not changed.
    """
    found = _once(state)
    first = next((n for n, t in state.items() if isinstance(t, Tensor) and _is_plain(n, t)), None)
    if first is not None:
        found[f"{_KEPT}{first}"] = found[first]
        found[first] = _empty(found[first])
    for path, module in model.named_modules():
        if isinstance(module, SplitLayer):
            for key, tensor in module.original.state_dict(keep_vars=True).items():
                found.setdefault(plain_name(module, path, key), _empty(tensor))
    return found


def _once(state: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    known: set[Any] = set()
    for name, value in state.items():
        if isinstance(value, Tensor) and value.numel() and not value.is_meta:
            place = value.device, value.data_ptr(), value.shape, value.stride()
            if place in known:
                continue
            known.add(place)
        found[name] = value
    return found


def _is_plain(name: str, tensor: Tensor) -> bool:
    return bool(tensor.numel()) and tensor.is_floating_point() and "_extra_state" not in name


def _empty(tensor: Tensor) -> Tensor:
    return tensor.detach().new_empty((0,) * max(1, tensor.dim()), device="cpu")


def without_guards_(state: MutableMapping[str, Any], prefix: str) -> None:
    """Takes out what `with_guards` has added.

    Args:
        state: The state_dict.
        prefix: The prefix of the model's keys.
    """
    kept = [key for key in state if key.startswith(f"{prefix}{_KEPT}")]
    if not kept:
        return
    for key, tensor in list(state.items()):
        if isinstance(tensor, Tensor) and not tensor.numel() and key.startswith(prefix):
            del state[key]
    for key in kept:
        state[prefix + key.removeprefix(f"{prefix}{_KEPT}")] = state.pop(key)
