"""The kinds of torch.nn's own layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from splitgrow.layers.kernels import Convolution, Kernel, Linear
from splitgrow.layers.types.registry import Along, LayerKind, Stock, TensorAxes, add_kind


def _placement(module: Stock, options: dict[str, Any]) -> dict[str, Any]:
    """The `device` and `dtype` for a new layer like `module`, whether it has tensors or not."""
    placement = {}
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.is_floating_point() or tensor.is_complex():
            placement = {"device": tensor.device, "dtype": tensor.dtype}
            break
    return placement | {key: options[key] for key in ("device", "dtype") if key in options}


def _without_missing(built: nn.Module, module: Stock) -> nn.Module:
    """Drops the weight or bias that `module` does not have; older norms take no `bias` argument."""
    for name in ("weight", "bias"):
        if getattr(module, name) is None:
            built.register_parameter(name, None)
    return built


class _Linear(LayerKind):
    layers = (nn.Linear,)
    sized = True
    mixes = False

    def channel_dim(self, module: Stock) -> int:  # noqa: ARG002
        return -1

    def diagonal(self, module: Stock) -> bool:  # noqa: ARG002
        return False

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
        return nn.Linear(*sizes, bias=bias, **_placement(module, options))


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


class _Conv(LayerKind):
    """One of torch's convolutions. Modules of other types may be given that are a form of it."""

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

    def diagonal(self, module: Stock) -> bool:
        return bool(1 < module.groups == module.in_channels)

    def sections(self, module: Stock) -> int:
        return 1 if self.diagonal(module) else module.groups

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:
        bias = {0: Along("out")}
        transposed = _CONVS[self.layer][1]
        if self.diagonal(module):
            # (out, 1, *kernel), or transposed (in, out // in, *kernel)
            return {"weight": {0: Along("in" if transposed else "out")}, "bias": bias}
        groups = self.sections(module)
        if transposed:  # (in, out // groups, *kernel)
            return {"weight": {0: Along("in"), 1: Along("out", groups)}, "bias": bias}
        return {"weight": {0: Along("out"), 1: Along("in", groups)}, "bias": bias}

    def reads_neighbours(self, module: Stock) -> bool:
        return bool(max(module.kernel_size) > 1)

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
            groups=0 if self.diagonal(module) else module.groups,
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
        groups = sizes[0] if self.diagonal(module) else module.groups
        bias = options.get("bias", module.bias is not None)
        return self.layer(
            *sizes, groups=groups, bias=bias, **arguments, **_placement(module, options)
        )


_NORMS: tuple[type[nn.Module], ...] = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)


class _Norm(LayerKind):
    """A norm that treats every channel by itself."""

    # Instance norms also take a single sample, without a batch dimension before the channels.
    _FROM_BEHIND = MappingProxyType(
        {nn.InstanceNorm1d: -2, nn.InstanceNorm2d: -3, nn.InstanceNorm3d: -4}
    )

    def __init__(self, layer: type[nn.Module]) -> None:
        self.layer, self.layers = layer, (layer,)

    def channel_dim(self, module: Stock) -> int:  # noqa: ARG002
        behind: Mapping[Any, int] = self._FROM_BEHIND
        return behind.get(self.layer, 1)

    def sizes(self, module: Stock) -> tuple[int, int]:
        return module.num_features, module.num_features

    def output_shape(self, module: Stock, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        dims = int(self.layer.__name__[-2])  # BatchNorm2d
        return shape if len(shape) == dims + 2 and shape[1] == module.num_features else None

    def batch_norm(self, module: Stock) -> bool:  # noqa: ARG002
        return "Batch" in self.layer.__name__

    def rescales(self, module: Stock) -> bool:
        return module.weight is not None

    def keeps_statistics(self, module: Stock) -> bool:
        return module.running_mean is not None

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:  # noqa: ARG002
        names = ("weight", "bias", "running_mean", "running_var")
        return {name: {0: Along("out")} for name in names}

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        names = ("eps", "momentum", "affine", "track_running_stats")
        arguments: dict[str, Any] = {name: getattr(module, name) for name in names}
        built = self.layer(sizes[1], **arguments, **_placement(module, options))
        return _without_missing(built, module)


class _SyncBatchNorm(_Norm):
    """A batch norm that takes the statistics of the batches of all processes."""

    def __init__(self) -> None:
        super().__init__(nn.SyncBatchNorm)

    def output_shape(self, module: Stock, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        return shape if len(shape) > 1 and shape[1] == module.num_features else None

    def batch_norm(self, module: Stock) -> bool:  # noqa: ARG002
        # Where there are other processes its blocks run by themselves: they ask those.
        return not (dist.is_available() and dist.is_initialized())

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        built: nn.Module = super().build(module, sizes, **options)
        vars(built)["process_group"] = module.process_group
        return built


class _GroupNorm(LayerKind):
    layers = (nn.GroupNorm,)

    def channel_dim(self, module: Stock) -> int:  # noqa: ARG002
        return 1

    def sizes(self, module: Stock) -> tuple[int, int]:
        return module.num_channels, module.num_channels

    def output_shape(self, module: Stock, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        return shape if len(shape) > 2 and shape[1] == module.num_channels else None

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:  # noqa: ARG002
        return {"weight": {0: Along("out")}, "bias": {0: Along("out")}}

    def bundle(self, module: Stock) -> int:
        return int(module.num_channels // module.num_groups)

    def rescales(self, module: Stock) -> bool:
        return module.weight is not None

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        arguments: dict[str, Any] = {"eps": module.eps, "affine": module.affine}
        groups = sizes[1] // self.bundle(module)
        built = nn.GroupNorm(groups, sizes[1], **arguments, **_placement(module, options))
        return _without_missing(built, module)


class RootMeanSquareNorm(LayerKind):
    """An RMS norm: each channel divided by the root of the mean square of all, times its weight.

    Channels that join as zeros leave the sum of squares as it is and divide it by more: by
    ``now / born``. Weights smaller by the root of that, and an eps smaller by that, give what was
    (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467, equation 4, solved for the old width).
    """

    couples = True
    side_by_side = False
    mixes = False
    eps_name = "eps"

    def channel_dim(self, module: Stock) -> int:  # noqa: ARG002
        """The last dimension."""
        return -1

    def sizes(self, module: Stock) -> tuple[int, int]:
        """The width, twice."""
        return module.weight.shape[0], module.weight.shape[0]

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:  # noqa: ARG002
        """Its weight runs along its outputs."""
        return {"weight": {0: Along("out")}}

    def made(self, module: Stock, width: int, eps: float) -> nn.Module:
        """A norm like `module` of another width and eps."""
        return type(module)(width, eps=eps)  # type: ignore[no-any-return]

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        """A norm of another width."""
        eps = getattr(module, self.eps_name)
        eps = torch.finfo(module.weight.dtype).eps if eps is None else eps
        narrower = self.sizes(module)[1] / sizes[1] if options.get("merged") else 1
        weight: torch.Tensor = module.weight
        with torch.device(options.get("device", weight.device)):
            built = self.made(module, sizes[1], eps * narrower)
        return cast(built, weight.dtype)

    def build_merged(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        """The norm that a grown one becomes: its eps is smaller."""
        return self.build(module, sizes, merged=True, **options)

    def carried_over(self, name: str, tensor: Tensor, born: int, now: int) -> Tensor:  # noqa: ARG002
        """Weights count less the wider the norm has become."""
        return tensor * math.sqrt(born / now)

    def output_shape(self, module: Stock, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """As its input."""
        return shape if shape[-1:] == tuple(module.weight.shape) else None


class _RMSNorm(RootMeanSquareNorm):
    layers = (nn.RMSNorm,)

    def covers(self, module: Stock) -> bool:
        return len(module.normalized_shape) == 1 and module.weight is not None


class _PReLU(LayerKind):
    layers = (nn.PReLU,)
    mixes = False

    def covers(self, module: Stock) -> bool:
        return bool(module.num_parameters != 1)  # with one value it is like any other activation

    def channel_dim(self, module: Stock) -> int:  # noqa: ARG002
        return 1

    def sizes(self, module: Stock) -> tuple[int, int]:
        return module.num_parameters, module.num_parameters

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:  # noqa: ARG002
        return {"weight": {0: Along("out")}}

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        return nn.PReLU(sizes[1], init=module.init, **_placement(module, options))


class _Embedding(LayerKind):
    sized = True
    mixes = False
    reads_channels = False

    def __init__(self, layer: type[nn.Module]) -> None:
        self.layer, self.layers = layer, (layer,)

    def runs_as_one(self, module: Stock) -> bool:
        return not module.sparse  # gradients of a whole table would be dense

    def channel_dim(self, module: Stock) -> int:  # noqa: ARG002
        return -1

    def sizes(self, module: Stock) -> tuple[int, int]:
        return 0, module.embedding_dim

    def diagonal(self, module: Stock) -> bool:  # noqa: ARG002
        return False

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:  # noqa: ARG002
        return {"weight": {1: Along("out")}}

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        layer: Any = self.layer
        names = ["norm_type", "scale_grad_by_freq", "sparse", "padding_idx"]
        names += ["mode", "include_last_offset"] if layer is nn.EmbeddingBag else []
        arguments: dict[str, Any] = {name: getattr(module, name) for name in names}
        placement = _placement(module, options)
        made: nn.Module = layer(module.num_embeddings, sizes[1], **arguments, **placement)
        return made

    def limits(self, module: Stock) -> str:
        if module.max_norm is not None:
            return "its max_norm rescales whole rows, whose norms would change with their width"
        return ""


for _kind in (
    _Linear(),
    *map(_Conv, _CONVS),
    *map(_Norm, _NORMS),
    _SyncBatchNorm(),
    _GroupNorm(),
    _PReLU(),
    *map(_Embedding, (nn.Embedding, nn.EmbeddingBag)),
    _RMSNorm(),
):
    add_kind(_kind)
