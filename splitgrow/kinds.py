"""The layer types that can grow: one entry says all that the rest of the library needs of a type.

A kind knows on which dimension its channels lie, which of its tensors run along outputs and inputs,
and how to make a block of it. To teach splitgrow a layer type, register one entry here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

from torch import nn


@dataclass(frozen=True, slots=True)
class Along:
    """What a tensor's dimension runs along: the layer's outputs or inputs, or a section of them.

    With `sections` of 4 the dimension covers one of four equal sections, as the input dimension of
    a convolution with four groups does.
    """

    side: Literal["out", "in"]
    sections: int = 1


TensorAxes = Mapping[int, Along]

Stock: TypeAlias = Any
"""A stock layer: a module with the attributes of its own type."""


class LayerKind(ABC):
    """What splitgrow knows of one layer type."""

    layers: tuple[type[nn.Module], ...]
    """The stock layer types that the entry is for, by exact type."""

    sized: bool = False
    """Whether its width can be asked for; the others follow the layer that they read."""

    mixes: bool = True
    """Whether it also mixes along dimensions other than the channels', such as space or batch."""

    @abstractmethod
    def channel_dim(self, module: Stock) -> int:
        """The dimension of input and output on which the channels lie."""

    @abstractmethod
    def sizes(self, module: Stock) -> tuple[int, int]:
        """The numbers of input and output channels."""

    @abstractmethod
    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:
        """Which dimensions of its parameters and buffers run along its channels."""

    @abstractmethod
    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        """A layer like `module` with other numbers of (input, output) channels.

        Args:
            module: The layer to take everything else from.
            sizes: The numbers of input and output channels.
            options: `bias` to say whether it has one (default: as `module`), `device` and `dtype`
                (default: those of `module`).
        """

    def diagonal(self, module: Stock) -> bool:  # noqa: ARG002
        """Whether each output reads its own input channel only, so that a block adds no helper."""
        return True

    def sections(self, module: Stock) -> int:  # noqa: ARG002
        """In how many equal sections its inputs and outputs are computed apart from each other."""
        return 1

    def bundle(self, module: Stock) -> int:  # noqa: ARG002
        """How many neighbouring channels are computed together and can only be added whole."""
        return 1

    def covers(self, module: Stock) -> bool:  # noqa: ARG002
        """Whether the module has channels of its own at all."""
        return True

    def refusal(self, module: Stock) -> str:
        """Why this one module cannot grow; empty if it can.

        `torch.nn.utils.weight_norm`, `spectral_norm` and `prune` take a parameter away and leave
        a tensor in its place that they compute anew before each forward.
        """
        own = dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])
        for name in self.tensors(module):
            if name not in own and getattr(module, name, None) is not None:
                return (
                    f"its `{name}` is computed from other tensors before each call (weight norm, "
                    f"spectral norm or pruning); remove that first, grow, and apply it again"
                )
        return ""


_KINDS: dict[type[nn.Module], LayerKind] = {}


def register_layer(kind: LayerKind) -> LayerKind:
    """Adds a kind for its layer types.

    Args:
        kind: The entry; each of its types must be new.

    Raises:
        ValueError: If one of the types has an entry already.
    """
    for layer in kind.layers:
        if layer in _KINDS:
            raise ValueError(f"{layer.__name__} is registered already, by {_KINDS[layer]}")
    _KINDS.update(dict.fromkeys(kind.layers, kind))
    return kind


def kind_of(module: Stock) -> LayerKind | None:
    """The entry for a module's exact type, or None.

    Subclasses are not matched: what a subclass changes in `forward` cannot be known.

    Example:
        >>> conv = nn.Conv2d(3, 8, 3)
        >>> kind_of(conv).sizes(conv)
        (3, 8)
        >>> kind_of(nn.LSTM(3, 8)) is None
        True
    """
    kind = _KINDS.get(type(module))
    return kind if kind is not None and kind.covers(module) else None


def _placement(module: Stock, options: dict[str, Any]) -> dict[str, Any]:
    """The `device` and `dtype` for a new layer like `module`, whether it has tensors or not."""
    placement = {}
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.is_floating_point():
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

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:  # noqa: ARG002
        return {"weight": {0: Along("out"), 1: Along("in")}, "bias": {0: Along("out")}}

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


class _Conv(LayerKind):
    layers = tuple(_CONVS)
    sized = True

    def channel_dim(self, module: Stock) -> int:
        return -1 - _CONVS[type(module)][0]

    def sizes(self, module: Stock) -> tuple[int, int]:
        return module.in_channels, module.out_channels

    def diagonal(self, module: Stock) -> bool:
        return bool(1 < module.groups == module.in_channels)

    def sections(self, module: Stock) -> int:
        return 1 if self.diagonal(module) else module.groups

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:
        bias = {0: Along("out")}
        transposed = _CONVS[type(module)][1]
        if self.diagonal(module):
            # (out, 1, *kernel), or transposed (in, out // in, *kernel)
            return {"weight": {0: Along("in" if transposed else "out")}, "bias": bias}
        groups = self.sections(module)
        if transposed:  # (in, out // groups, *kernel)
            return {"weight": {0: Along("in"), 1: Along("out", groups)}, "bias": bias}
        return {"weight": {0: Along("out"), 1: Along("in", groups)}, "bias": bias}

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        arguments: dict[str, Any] = {
            name: getattr(module, name)
            for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        }
        if _CONVS[type(module)][1]:
            arguments["output_padding"] = module.output_padding
        groups = sizes[0] if self.diagonal(module) else module.groups
        bias = options.get("bias", module.bias is not None)
        layer: type[nn.Module] = type(module)
        return layer(*sizes, groups=groups, bias=bias, **arguments, **_placement(module, options))


class _Norm(LayerKind):
    """The norms that treat every channel by itself."""

    layers: tuple[type[nn.Module], ...] = (
        nn.BatchNorm1d,
        nn.BatchNorm2d,
        nn.BatchNorm3d,
        nn.InstanceNorm1d,
        nn.InstanceNorm2d,
        nn.InstanceNorm3d,
    )
    # Instance norms also take a single sample, without a batch dimension before the channels.
    _FROM_BEHIND = MappingProxyType(
        {nn.InstanceNorm1d: -2, nn.InstanceNorm2d: -3, nn.InstanceNorm3d: -4}
    )

    def channel_dim(self, module: Stock) -> int:
        return self._FROM_BEHIND.get(type(module), 1)

    def sizes(self, module: Stock) -> tuple[int, int]:
        return module.num_features, module.num_features

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:  # noqa: ARG002
        names = ("weight", "bias", "running_mean", "running_var")
        return {name: {0: Along("out")} for name in names}

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        names = ("eps", "momentum", "affine", "track_running_stats")
        arguments: dict[str, Any] = {name: getattr(module, name) for name in names}
        built = type(module)(sizes[1], **arguments, **_placement(module, options))
        return _without_missing(built, module)


class _GroupNorm(LayerKind):
    layers = (nn.GroupNorm,)

    def channel_dim(self, module: Stock) -> int:  # noqa: ARG002
        return 1

    def sizes(self, module: Stock) -> tuple[int, int]:
        return module.num_channels, module.num_channels

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:  # noqa: ARG002
        return {"weight": {0: Along("out")}, "bias": {0: Along("out")}}

    def bundle(self, module: Stock) -> int:
        return int(module.num_channels // module.num_groups)

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        arguments: dict[str, Any] = {"eps": module.eps, "affine": module.affine}
        groups = sizes[1] // self.bundle(module)
        built = nn.GroupNorm(groups, sizes[1], **arguments, **_placement(module, options))
        return _without_missing(built, module)


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


for _kind in (_Linear(), _Conv(), _Norm(), _GroupNorm(), _PReLU()):
    register_layer(_kind)


def sized_layers() -> tuple[type[nn.Module], ...]:
    """The stock layer types whose width can be asked for."""
    return tuple(layer for layer, kind in _KINDS.items() if kind.sized)
