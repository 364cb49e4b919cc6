"""The entries for torch.nn's own layers."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from splitgrow.layers.kernels import Convolution, Kernel, Linear
from splitgrow.layers.types.layer_type import (
    Along,
    LayerType,
    Merging,
    Norm,
    Stock,
    TensorAxes,
)
from splitgrow.layers.types.registry import add_layer_type


def placement_of(module: Stock, options: dict[str, Any]) -> dict[str, Any]:
    """The `device` and `dtype` for a new layer like `module`, whether it has tensors or not."""
    placement = {}
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.is_floating_point() or tensor.is_complex():
            placement = {"device": tensor.device, "dtype": tensor.dtype}
            break
    return placement | {key: options[key] for key in ("device", "dtype") if key in options}


def without_missing(built: nn.Module, module: Stock) -> nn.Module:
    """Drops the weight or bias that `module` does not have; older norms take no `bias` argument."""
    for name in ("weight", "bias"):
        if getattr(module, name) is None:
            built.register_parameter(name, None)
    return built


class _Linear(LayerType):
    layers = (nn.Linear,)
    sized = True
    mixes = False

    def channel_dim(self, module: Stock) -> int:  # noqa: ARG002
        return -1

    def sizes(self, module: Stock) -> tuple[int, int]:
        return module.in_features, module.out_features

    def output_shape(self, module: Stock, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        fits = shape[-1:] == (module.in_features,)
        return (*shape[:-1], module.out_features) if fits else None

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:  # noqa: ARG002
        return {"weight": {0: Along("out"), 1: Along("in")}, "bias": {0: Along("out")}}

    def kernel(self, module: Stock) -> Kernel:  # noqa: ARG002
        return Linear()

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        bias = options.get("bias", module.bias is not None)
        return nn.Linear(*sizes, bias=bias, **placement_of(module, options))


_CONVS: dict[type[nn.Module], tuple[int, bool]] = {
    nn.Conv1d: (1, False),
    nn.Conv2d: (2, False),
    nn.Conv3d: (3, False),
    nn.ConvTranspose1d: (1, True),
    nn.ConvTranspose2d: (2, True),
    nn.ConvTranspose3d: (3, True),
}


def cast(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A fresh layer in another dtype; unlike ``layer.to(dtype)`` it works on fake tensors too."""
    for name, parameter in list(layer.named_parameters(recurse=False)):
        setattr(layer, name, nn.Parameter(parameter.detach().to(dtype)))
    for name, buffer in list(layer.named_buffers(recurse=False)):
        setattr(layer, name, buffer.to(dtype))
    return layer


def _is_depthwise(module: Stock) -> bool:
    return bool(1 < module.groups == module.in_channels)


class _Conv(LayerType):
    """One of torch's convolutions; also given modules of other types that are forms of it."""

    sized = True

    def __init__(self, layer: type[nn.Module]) -> None:
        self.layer, self.layers = layer, (layer,)

    def channel_dim(self, module: Stock) -> int:  # noqa: ARG002
        return -1 - _CONVS[self.layer][0]

    def sizes(self, module: Stock) -> tuple[int, int]:
        return module.in_channels, module.out_channels

    def output_shape(self, module: Stock, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        dims, transposed = _CONVS[self.layer]
        if len(shape) != dims + 2 or shape[1] != module.in_channels or transposed:
            return None
        if not isinstance(module.padding, tuple):
            return None
        space = (
            (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for size, padding, dilation, kernel, stride in zip(
                shape[2:],
                module.padding,
                module.dilation,
                module.kernel_size,
                module.stride,
                strict=True,
            )
        )
        found = (shape[0], module.out_channels, *space)
        return found if min(found[2:]) > 0 else None

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:
        bias = {0: Along("out")}
        transposed = _CONVS[self.layer][1]
        if _is_depthwise(module):
            # (out, 1, *kernel), or transposed (in, out // in, *kernel)
            return {"weight": {0: Along("in" if transposed else "out")}, "bias": bias}
        groups = module.groups
        if transposed:  # (in, out // groups, *kernel)
            return {"weight": {0: Along("in"), 1: Along("out", groups)}, "bias": bias}
        return {"weight": {0: Along("out"), 1: Along("in", groups)}, "bias": bias}

    def kernel(self, module: Stock) -> Kernel:
        dims, transposed = _CONVS[self.layer]
        padding, before = module.padding, ()
        if not transposed and (isinstance(padding, str) or module.padding_mode != "zeros"):
            padding, before = (0,) * dims, tuple(vars(module)["_reversed_padding_repeated_twice"])
        return Convolution(
            stride=module.stride,
            padding=padding,
            dilation=module.dilation,
            output_padding=module.output_padding,
            transposed=transposed,
            groups=0 if _is_depthwise(module) else module.groups,
            before=before if any(before) else (),
            mode="constant" if module.padding_mode == "zeros" else module.padding_mode,
        )

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        arguments: dict[str, Any] = {
            name: getattr(module, name)
            for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        }
        if _CONVS[self.layer][1]:
            arguments["output_padding"] = module.output_padding
        groups = sizes[0] if _is_depthwise(module) else module.groups
        bias = options.get("bias", module.bias is not None)
        return self.layer(
            *sizes, groups=groups, bias=bias, **arguments, **placement_of(module, options)
        )


class Channelwise(LayerType):
    """A layer type that computes each channel by itself, with one number in every tensor."""

    dim = 1
    """The dimension on which the channels lie."""

    width = ""
    """The attribute that holds their number; empty if the weight's length does."""

    names: tuple[str, ...] = ("weight", "bias")
    """The tensors."""

    def channel_dim(self, module: Stock) -> int:  # noqa: ARG002
        """As `dim` says."""
        return self.dim

    def sizes(self, module: Stock) -> tuple[int, int]:
        """The number of channels, twice."""
        width = getattr(module, self.width) if self.width else module.weight.shape[0]
        return width, width

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:  # noqa: ARG002
        """All of them run along the outputs."""
        return {name: {0: Along("out")} for name in self.names}


_NORMS: dict[type[nn.Module], int] = {
    nn.BatchNorm1d: 1,
    nn.BatchNorm2d: 1,
    nn.BatchNorm3d: 1,
    # These also take a single sample, without a batch dimension before the channels.
    nn.InstanceNorm1d: -2,
    nn.InstanceNorm2d: -3,
    nn.InstanceNorm3d: -4,
}


class _Norm(Channelwise):
    """A norm that treats every channel by itself."""

    width = "num_features"
    names = ("weight", "bias", "running_mean", "running_var")

    def __init__(self, layer: type[nn.Module], dim: int = 1) -> None:
        self.layer, self.layers, self.dim = layer, (layer,), dim

    def output_shape(self, module: Stock, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        dims = int(self.layer.__name__[-2])  # BatchNorm2d
        return shape if len(shape) == dims + 2 and shape[1] == module.num_features else None

    def norm(self, module: Stock) -> Norm:  # noqa: ARG002
        return Norm(batch="Batch" in self.layer.__name__)

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        names = ("eps", "momentum", "affine", "track_running_stats")
        arguments: dict[str, Any] = {name: getattr(module, name) for name in names}
        built = self.layer(sizes[1], **arguments, **placement_of(module, options))
        return without_missing(built, module)


class _SyncBatchNorm(_Norm):
    """A batch norm that takes the statistics of the batches of all processes."""

    def __init__(self) -> None:
        super().__init__(nn.SyncBatchNorm)

    def output_shape(self, module: Stock, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        return shape if len(shape) > 1 and shape[1] == module.num_features else None

    def norm(self, module: Stock) -> Norm:  # noqa: ARG002
        # With several processes each block runs by itself and exchanges statistics with the others.
        return Norm(batch=not (dist.is_available() and dist.is_initialized()))

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        built: nn.Module = super().build(module, sizes, **options)
        vars(built)["process_group"] = module.process_group
        return built


class _GroupNorm(Channelwise):
    layers = (nn.GroupNorm,)
    width = "num_channels"

    def output_shape(self, module: Stock, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        return shape if len(shape) > 2 and shape[1] == module.num_channels else None

    def bundle(self, module: Stock) -> int:
        return int(module.num_channels // module.num_groups)

    def norm(self, module: Stock) -> Norm:  # noqa: ARG002
        return Norm()

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        arguments: dict[str, Any] = {"eps": module.eps, "affine": module.affine}
        groups = sizes[1] // self.bundle(module)
        built = nn.GroupNorm(groups, sizes[1], **arguments, **placement_of(module, options))
        return without_missing(built, module)


class _PReLU(Channelwise):
    layers = (nn.PReLU,)
    mixes = False
    width = "num_parameters"
    names = ("weight",)

    def covers(self, module: Stock) -> bool:
        return bool(module.num_parameters != 1)  # with one value it is like any other activation

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        return nn.PReLU(sizes[1], init=module.init, **placement_of(module, options))


class _Looking(Merging):
    """A helper has the new rows of a table."""

    def helper(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        return self.build(module, sizes, padding_idx=None, **options)


class _Embedding(LayerType):
    sized = True
    mixes = False
    reads_channels = False

    def __init__(self, layer: type[nn.Module]) -> None:
        self.layer, self.layers = layer, (layer,)
        self.looks_up = layer is nn.Embedding

    def runs_as_one(self, module: Stock) -> bool:
        return not module.sparse  # gradients of a whole table would be dense

    def channel_dim(self, module: Stock) -> int:  # noqa: ARG002
        return -1

    def sizes(self, module: Stock) -> tuple[int, int]:
        return module.num_embeddings if self.looks_up else 0, module.embedding_dim

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:  # noqa: ARG002
        # The rows of a table are the inputs: one for each thing that can be looked up.
        rows = {0: Along("in")} if self.looks_up else {}
        return {"weight": {**rows, 1: Along("out")}}

    @cached_property
    def merging(self) -> Merging:
        return _Looking(self.build)

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        layer: Any = self.layer
        names = ["norm_type", "scale_grad_by_freq", "sparse", "padding_idx"]
        names += [] if self.looks_up else ["mode", "include_last_offset"]
        arguments = {name: options.get(name, getattr(module, name)) for name in names}
        placement = placement_of(module, options)
        rows = sizes[0] if self.looks_up else module.num_embeddings
        made: nn.Module = layer(rows, sizes[1], **arguments, **placement)
        return made

    def limits(self, module: Stock) -> str:
        if module.max_norm is not None:
            return "its max_norm rescales whole rows, whose norms would change with their width"
        return ""


for _entry in (
    _Linear(),
    *map(_Conv, _CONVS),
    *(_Norm(layer, dim) for layer, dim in _NORMS.items()),
    _SyncBatchNorm(),
    _GroupNorm(),
    _PReLU(),
    *map(_Embedding, (nn.Embedding, nn.EmbeddingBag)),
):
    add_layer_type(_entry)
