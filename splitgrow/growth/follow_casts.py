"""Example inputs and saved states that follow the model to another dtype or device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn

from splitgrow.growth.history import History
from splitgrow.layers.module_state import moved

Kind = tuple[torch.dtype, torch.device]


@contextmanager
def all_follow(model: nn.Module, history: History) -> Iterator[None]:
    """Has inputs and states go to the dtype and device to which the block brings the parameters.

    These are the example inputs, and the buffers of closed generations. A floating one goes along
    if parameters had its dtype before. Whole numbers only change the device. The parameters tell
    where to, rather than the function that is applied to them: that may return tensors without
    values. Inputs never lose theirs, so they stay where they are while the model is on the meta
    device.

    Args:
        model: A growable model.
        history: Its history.
    """
    before = _kinds(model)
    yield
    dtypes: dict[torch.dtype, torch.dtype] = {}
    devices: dict[torch.device, torch.device] = {}
    for (dtype, device), (new_dtype, new_device) in zip(before, _kinds(model), strict=False):
        dtypes.setdefault(dtype, new_dtype)
        devices.setdefault(device, new_device)
    if all(old == new for old, new in chain(dtypes.items(), devices.items())):
        return

    def follow(tensor: Tensor) -> Tensor:
        if tensor.is_meta:
            return tensor
        device = devices.get(tensor.device, devices.get(torch.device("meta"), tensor.device))
        dtype = dtypes.get(tensor.dtype, tensor.dtype)
        return tensor.to(tensor.device if device.type == "meta" else device, dtype)

    history.inputs = history.inputs.map(follow)
    history.narrower = tuple((edit, call.map(follow)) for edit, call in history.narrower)
    moved(history.states, follow)


def _kinds(model: nn.Module) -> list[Kind]:
    """The dtypes and devices of the parameters, or of the buffers if there are none."""
    for tensors in ([*model.parameters()], [*model.buffers()]):
        found = [(t.dtype, t.device) for t in tensors if t.is_floating_point() or t.is_complex()]
        if found:
            return found
    return []
