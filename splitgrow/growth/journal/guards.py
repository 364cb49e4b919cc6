"""Entries of a state_dict that stop loaders which know nothing of growth.

Those of transformers pass over tensors that they miss or do not know, with a warning. So they would
make another network of a grown model's tensors. But they take no tensor of another shape, and nor
does torch, strict or not. So the plain names of grown layers, and one more name, get tensors of a
shape that no layer has. Each has storage of its own: savers drop those that share it.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.layers.split_layer import SplitLayer
from splitgrow.layers.tensor_holder import plain_name

_KEPT = "grown_by_splitgrow.use_splitgrow_save_pretrained."
"""The prefix under which a tensor is kept whose name has a guard; loaders show it."""
_NUMBER = 2.0**-14
"""The number in a guard: the same in all floating dtypes, to which states may be cast."""


def put_guards_(model: nn.Module, state: MutableMapping[str, Any], prefix: str) -> None:
    """Adds entries to a grown model's state_dict, so that no other loader takes it for a plain one.

    Args:
        model: The model.
        state: Its state_dict, maybe among other entries.
        prefix: The prefix of the model's keys.
    """
    own = [name for name in state if name.startswith(prefix)]
    if any(name.startswith(f"{prefix}{_KEPT}") for name in own):
        return
    first = next((n for n in own if _is_plain(n, state[n])), None)
    if first is not None:
        state[f"{prefix}{_KEPT}{first.removeprefix(prefix)}"] = state[first]
        state[first] = _guard(state[first])
    for path, module in model.named_modules():
        if isinstance(module, SplitLayer):
            for key, tensor in module.original.state_dict(keep_vars=True).items():
                state.setdefault(prefix + plain_name(module, path, key), _guard(tensor))


def each_once(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state_dict with one of several tied tensors, as safetensors wants it."""
    found: dict[str, Any] = {}
    known: set[Any] = set()
    # The one that is kept under another name first, since its own name has a guard.
    for name, value in sorted(state.items(), key=lambda item: _KEPT not in item[0]):
        if isinstance(value, Tensor) and value.numel() and not value.is_meta:
            place = value.device, value.data_ptr(), value.shape, value.stride()
            if place in known:
                continue
            known.add(place)
        found[name] = value
    return found


def _is_plain(name: str, value: object) -> bool:
    tensor = isinstance(value, Tensor) and value.numel() and value.is_floating_point()
    return bool(tensor) and "_extra_state" not in name and ".inserted" not in name


def _guard(tensor: Tensor) -> Tensor:
    """A tensor that is taken for no other: of two dimensions more, with one known number."""
    return torch.full((1,) * (tensor.dim() + 2), _NUMBER)


def _is_guard(value: object) -> bool:
    if not isinstance(value, Tensor) or value.is_meta or value.dim() < 2 or value.numel() != 1:
        return False
    return value.is_floating_point() and value.item() == _NUMBER


def without_guards_(state: MutableMapping[str, Any], prefix: str) -> None:
    """Takes out what `put_guards_` has added.

    Args:
        state: The state_dict.
        prefix: The prefix of the model's keys.
    """
    kept = [key for key in state if key.startswith(f"{prefix}{_KEPT}")]
    if not kept:
        return
    for key, tensor in list(state.items()):
        if key.startswith(prefix) and _is_guard(tensor):
            del state[key]
    for key in kept:
        state[prefix + key.removeprefix(f"{prefix}{_KEPT}")] = state.pop(key)
