"""The entries for layers of common libraries, by dotted name: none need be installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import splitgrow.layers.types.torch_layers  # noqa: F401 - the layers here are forms of these
from splitgrow.layers.kernels import Convolution, Kernel, Linear
from splitgrow.layers.types.alike import Alike, Same
from splitgrow.layers.types.layer_type import (
    Along,
    LayerType,
    Merging,
    Norm,
    Stock,
    TensorAxes,
)
from splitgrow.layers.types.registry import LAYER_TYPES, add_layer_type
from splitgrow.layers.types.start_values import UNCHANGED, Carry
from splitgrow.layers.types.torch_layers import Channelwise, cast


class _SamePadded(Alike):
    """A convolution that pads its input to as many outputs as steps fit into it."""

    def kernel(self, module: Stock) -> Kernel | None:
        return padded_same(self.base.kernel(module), module)


def padded_same(kernel: Kernel | None, module: Stock) -> Kernel | None:
    """A convolution's arithmetic, with that padding."""
    if not isinstance(kernel, Convolution):
        return None
    return replace(kernel, reach=tuple(module.kernel_size), padding=(0,) * len(kernel.stride))


class _WithActivation(Alike):
    """A norm with an activation behind it, in one layer: timm's BatchNormAct2d and its like."""

    def output_shape(self, module: Stock, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        return self.base.output_shape(module, shape)

    def norm(self, module: Stock) -> Norm | None:
        found = self.base.norm(module)
        return found and replace(found, finished=lambda y: module.act(module.drop(y)))

    def stock_parts(self, module: Stock) -> list[nn.Module]:
        return [self.as_base(module), module.drop, module.act]


class _FrozenNorm(Channelwise):
    """Batch norms whose tensors are all buffers: torchvision's FrozenBatchNorm2d."""

    layers = ("torchvision.ops.misc.FrozenBatchNorm2d",)
    names = ("weight", "bias", "running_mean", "running_var")

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        with torch.device(options.get("device", module.weight.device)):
            built: nn.Module = type(module)(sizes[1], eps=module.eps)
        return cast(built, module.weight.dtype)


class _TurnedHelpers(Merging):
    """A helper is a Linear, whose weight lies the other way."""

    def helper(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        like = module.weight
        device = options.get("device", like.device)
        return nn.Linear(*sizes, bias=False, device=device, dtype=like.dtype)

    def value(self, block: Stock, name: str) -> Tensor | None:
        if self.turned(block):
            return block.weight.T if name == "weight" else None
        return super().value(block, name)

    @property
    def keeps_weight(self) -> bool:
        return True

    def turned(self, block: Stock) -> bool:
        return isinstance(block, nn.Linear)


class _TransposedLinear(LayerType):
    """A Linear whose weight is (in, out): transformers' Conv1D, of GPT-2."""

    layers = ("transformers.pytorch_utils.Conv1D",)
    sized = True
    mixes = False

    def channel_dim(self, module: Stock) -> int:  # noqa: ARG002
        return -1

    def sizes(self, module: Stock) -> tuple[int, int]:
        inputs, outputs = module.weight.shape
        return inputs, outputs

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:  # noqa: ARG002
        return {"weight": {0: Along("in"), 1: Along("out")}, "bias": {0: Along("out")}}

    def kernel(self, module: Stock) -> Kernel:  # noqa: ARG002
        return Linear(transposed=True)

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        if options.get("bias") is False:
            raise NotImplementedError("it always has a bias")
        dtype: torch.dtype = module.weight.dtype
        with torch.device(options.get("device", module.weight.device)):
            built: nn.Module = type(module)(sizes[1], sizes[0])
        return cast(built, dtype)

    @cached_property
    def merging(self) -> Merging:
        return _TurnedHelpers(self.build)

    def stock_parts(self, module: Stock) -> list[nn.Module]:
        plain = nn.Linear(*self.sizes(module), device="meta")
        plain.weight = nn.Parameter(module.weight.detach().T.contiguous())
        plain.bias = module.bias
        return [plain.train(module.training)]


@dataclass(frozen=True)
class _Standardising(Merging):
    """The weight of a convolution is standardised when it merges.

    The standardised weight for one input channel depends on the weights for the others, so a helper
    cannot be of the layer's type: it is a plain convolution, and so is a merged layer.
    """

    plain: Callable[..., nn.Module]
    computes_weight = True
    computes_new = True

    def helper(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        return self.merged(module, sizes, bias=False, **options)

    def merged(
        self,
        module: Stock,
        sizes: tuple[int, int],
        carry: Carry = UNCHANGED,  # noqa: ARG002
        **options: Any,
    ) -> nn.Module:
        plain = self.plain(module, sizes, **options)
        if getattr(module, "same_pad", False):
            plain.__class__ = sys.modules["timm.layers.conv2d_same"].Conv2dSame
        return plain

    def value(self, block: Stock, name: str) -> Tensor | None:
        if name != "weight" or type(block).__name__ in {"Conv2d", "Conv2dSame"}:
            return super().value(block, name)
        gain = (block.gain * block.scale).view(-1) if hasattr(block, "gain") else None
        rows = block.weight.reshape(1, block.out_channels, -1)
        made = F.batch_norm(rows, None, None, gain, training=True, momentum=0.0, eps=block.eps)
        return made.reshape_as(block.weight)


class _StandardisedConv(Alike):
    """A convolution that brings each output's weight to zero mean and unit variance."""

    @cached_property
    def merging(self) -> Merging:
        return _Standardising(self.build, self.base.build)

    def kernel(self, module: Stock) -> Kernel | None:
        found = self.base.kernel(module)
        return padded_same(found, module) if getattr(module, "same_pad", False) else found

    def tensors(self, module: Stock) -> Mapping[str, TensorAxes]:
        tensors = dict(self.base.tensors(module))
        if isinstance(getattr(module, "gain", None), Tensor):
            tensors["gain"] = {0: Along("out")}
        return tensors

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        built: Any = super().build(module, sizes, **options)
        if hasattr(module, "gain"):
            device = options.get("device", module.gain.device)
            gain = module.gain.new_full((sizes[1], 1, 1, 1), module.gain_init, device=device)
            built.gain = nn.Parameter(gain)
            # It divides by the root of the number of inputs.
            built.scale = module.scale * (module.weight[0].numel() / built.weight[0].numel()) ** 0.5
        answer: nn.Module = built
        return answer

    def stock_parts(self, module: Stock) -> list[nn.Module]:
        if getattr(module, "same_pad", False) or getattr(module, "pad", None) is not None:
            return []
        plain: Any = self.base.build(module, self.sizes(module), device="meta")
        weight = self.merging.value(module, "weight")
        assert weight is not None
        plain.weight, plain.bias = nn.Parameter(weight.detach()), module.bias
        return [plain.train(module.training)]

    def limits(self, module: Stock) -> str:
        if getattr(module, "pad", None) is not None:
            return "it pads its input in a way that no plain convolution does"
        return ""


_CONV, _LINEAR = LAYER_TYPES[nn.Conv2d], LAYER_TYPES[nn.Linear]
_BATCH_NORM, _GROUP_NORM = LAYER_TYPES[nn.BatchNorm2d], LAYER_TYPES[nn.GroupNorm]
_TIMM = "timm.layers"

for _made in (
    _SamePadded(_CONV, (f"{_TIMM}.conv2d_same.Conv2dSame",)),
    Same(
        _LINEAR,
        (f"{_TIMM}.linear.Linear", "transformers.models.falcon.modeling_falcon.FalconLinear"),
    ),
    Same(_GROUP_NORM, (f"{_TIMM}.norm.GroupNorm", f"{_TIMM}.norm.GroupNorm1")),
    _WithActivation(_BATCH_NORM, (f"{_TIMM}.norm_act.BatchNormAct2d",)),
    _WithActivation(
        _GROUP_NORM, (f"{_TIMM}.norm_act.GroupNormAct", f"{_TIMM}.norm_act.GroupNorm1Act")
    ),
    _StandardisedConv(
        _CONV,
        (
            f"{_TIMM}.std_conv.StdConv2d",
            f"{_TIMM}.std_conv.StdConv2dSame",
            f"{_TIMM}.std_conv.ScaledStdConv2d",
            f"{_TIMM}.std_conv.ScaledStdConv2dSame",
            "transformers.models.bit.modeling_bit.WeightStandardizedConv2d",
        ),
    ),
    _FrozenNorm(),
    _TransposedLinear(),
):
    add_layer_type(_made)
