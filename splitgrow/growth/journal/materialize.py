"""Giving memory to tensors without values; the shapes in the checkpoint must be the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.errors import CheckpointError
from splitgrow.utils.rollback import Undo

EmptySlot = tuple[nn.Module, str]
"""The owner of a tensor: the module, and the tensor's name there."""


def empty_slots_of(model: nn.Module) -> Iterator[tuple[str, EmptySlot, Tensor]]:
    """All parameters and buffers by name, every name of each."""
    for path, module in model.named_modules(remove_duplicate=False):
        for store in (module._parameters, module._buffers):  # noqa: SLF001
            for name, tensor in store.items():
                if tensor is not None:
                    yield f"{path}.{name}" if path else name, (module, name), tensor


def materialise_(model: nn.Module, like: Mapping[str, Any], undo: Undo) -> None:
    """Gives memory to tensors on the meta device, if tensors of the same shapes will be loaded.

    Each goes to the device of the tensor before it, which is the original block's.

    Args:
        model: The model.
        like: The tensors to load, by name.
        undo: Takes it back.

    Raises:
        CheckpointError: If one is missing, or of another shape.
    """

    def empty(name: str, tensor: Tensor, device: torch.device) -> Tensor:
        found = like.get(name)
        if not isinstance(found, Tensor) or found.shape != tensor.shape:
            shape = tuple(found.shape) if isinstance(found, Tensor) else "missing"
            raise CheckpointError(
                f"`{name}` of the checkpoint is {shape}, by its journal {tuple(tensor.shape)}"
            )
        if (
            type(found) in {Tensor, nn.Parameter}
            and found.nbytes > found.untyped_storage().nbytes()
        ):
            raise CheckpointError(f"`{name}` of the checkpoint is one number at many places")
        return torch.zeros_like(found, device=device)

    fill_meta_(model, empty, undo)


def fill_meta_(
    model: nn.Module,
    value: Callable[[str, Tensor, torch.device], Tensor],
    undo: Undo,
    device: torch.device | None = None,
) -> None:
    """Replaces tensors on the meta device by tensors with values.

    Args:
        model: The model.
        value: Makes one, given its name, the tensor without values, and the device.
        undo: Takes it back.
        device: Their device; None for the device of the tensor before it.
    """
    made: dict[int, Tensor] = {}
    here = device or torch.device("cpu")
    for name, (module, own), tensor in [*empty_slots_of(model)]:
        if not tensor.is_meta:
            here = device or tensor.device
            continue
        if id(tensor) not in made:
            filled = value(name, tensor, here)
            if isinstance(tensor, nn.Parameter):
                filled = _parameter(name, filled, trains=tensor.requires_grad)
            made[id(tensor)] = filled
        store: Any = module._parameters if own in module._parameters else module._buffers  # noqa: SLF001
        undo.on_failure(partial(store.__setitem__, own, tensor))
        store[own] = made[id(tensor)]


def _parameter(name: str, tensor: Tensor, *, trains: bool) -> nn.Parameter:
    if trains and not (tensor.is_floating_point() or tensor.is_complex()):
        raise CheckpointError(f"`{name}` of the checkpoint holds {tensor.dtype}, and cannot train")
    return nn.Parameter(tensor, requires_grad=trains)
