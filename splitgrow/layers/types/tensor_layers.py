"""A parameter or buffer of any module as a layer of its own, which grows along channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.layers.types.layer_type import Along, LayerType, Stock, TensorAxes
from splitgrow.layers.types.registry import add_layer_type

ROLES = ("meets", "scales", "weighs")


@dataclass(frozen=True)
class TensorUse:
    """How a tensor of a module lies along channels.

    Attributes:
        outs: The dimension along channels that it meets or makes; None if there is none.
        ins: The dimension along channels that products sum over; None if there is none.
        role: "scales" if it only multiplies channels, "weighs" if it is the matrix of products,
            "meets" for everything else.
    """

    outs: int | None
    ins: int | None = None
    role: str = "meets"


class TensorBlock(nn.Module):
    """A tensor of a module, or a later block of it: the layer has this one tensor.

    Attributes:
        value: The tensor, a parameter or a buffer.
        use: How it lies along channels.

    Args:
        value: The tensor. It is not copied.
        use: How it lies along channels.
        persistent: Whether a buffer is part of the state_dict.
    """

    value: Tensor

    def __init__(self, value: Tensor, use: TensorUse, *, persistent: bool = True) -> None:
        super().__init__()
        if isinstance(value, nn.Parameter):
            self._parameters["value"] = value
        else:
            self.register_buffer("value", value, persistent)
        self.use = use

    @property
    def persistent(self) -> bool:
        """Whether it is part of the state_dict."""
        return "value" not in self._non_persistent_buffers_set

    def forward(self) -> Tensor:
        """The tensor."""
        return self.value

    def extra_repr(self) -> str:
        """Whether it is a parameter, and its shape."""
        return f"{type_name(self)}, shape={tuple(self.value.shape)}"


def type_name(layer: nn.Module) -> str:
    """The name of a stock layer's type for users, such as ``Conv2d`` or ``Parameter``."""
    if isinstance(layer, TensorBlock):
        return "Parameter" if "value" in layer._parameters else "Buffer"  # noqa: SLF001
    return type(layer).__name__


class _Tensor(LayerType):
    layers = (TensorBlock,)
    mixes = False
    reads_channels = False

    def channel_dim(self, module: Stock) -> int:
        return module.use.outs or 0

    def sizes(self, module: Stock) -> tuple[int, int]:
        shape, use = module.value.shape, module.use
        ins, outs = (0 if dim is None else shape[dim] for dim in (use.ins, use.outs))
        return ins, outs

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:
        sides = ((module.use.outs, Along("out")), (module.use.ins, Along("in")))
        return {"value": {dim: along for dim, along in sides if dim is not None}}

    def diagonal(self, module: Stock) -> bool:
        return bool(module.use.role == "scales")

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        shape, use = list(module.value.shape), module.use
        for dim, size in ((use.ins, sizes[0]), (use.outs, sizes[1])):
            if dim is not None:
                shape[dim] = size
        old: Tensor = module.value.detach()
        device = torch.device(options.get("device", old.device))
        if device.type == "meta" or old.is_meta:
            value = old.new_empty(shape, device=device)
        else:
            value = first_values(old, shape, use.role).to(device)
        if isinstance(module.value, nn.Parameter):
            trains = value.is_floating_point() or value.is_complex()
            value = nn.Parameter(value, requires_grad=trains)
        return TensorBlock(value, use, persistent=module.persistent)


def first_values(old: Tensor, shape: list[int], role: str) -> Tensor:
    """The first values of new entries of a tensor.

    They are copies of the old entries in turn, which suit any use: slopes, positions, logarithms of
    decays. A matrix that makes new channels would make them alike, so it draws from the old
    entries.

    Args:
        old: The tensor before it first grew.
        shape: The shape of the new part.
        role: As in `TensorUse`.
    """
    if role == "weighs":
        drawn = torch.randint(old.numel(), shape, device=old.device)
        return old.reshape(-1)[drawn]
    for dim, size in enumerate(shape):
        if size != old.shape[dim]:
            old = old.index_select(dim, torch.arange(size, device=old.device) % old.shape[dim])
    return old.clone()


add_layer_type(_Tensor())
