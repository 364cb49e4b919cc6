"""Norms that take a statistic over all their channels: torch's own, and what all of them share."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.layers.types.layer_type import Merging, Stock
from splitgrow.layers.types.registry import add_layer_type
from splitgrow.layers.types.start_values import UNCHANGED, Carry, Start
from splitgrow.layers.types.torch_layers import Channelwise, placement_of, without_missing


class StatisticMerging(Merging):
    """The blocks of a norm whose channels share a statistic: older channels count less."""

    couples = joint = True

    def merged(
        self,
        module: Stock,
        sizes: tuple[int, int],
        carry: Carry = UNCHANGED,
        **options: Any,
    ) -> nn.Module:
        """The plain norm, its values unset."""
        return self.build(module, sizes, carry=carry, **options)

    def carried_over(self, name: str, tensor: Tensor, carry: Carry) -> Tensor:
        """A block's tensor times its factor."""
        return tensor * (carry.shift if name == "bias" else carry.gain)


class StatisticNorm(Channelwise):
    """A norm that takes a statistic over all its channels, on the last dimension.

    Each channel is divided by the root of the mean square of all, or of all less their mean.
    """

    mixes = False
    dim = -1
    centred = False
    """Whether the mean is subtracted first."""

    @cached_property
    def merging(self) -> Merging:
        """New channels join so that they change the statistic in a known way."""
        return StatisticMerging(self.build)

    def starts(self, module: Stock) -> Mapping[Start, Start]:
        """Zeros, or means where the mean is subtracted, become zeros; copies stay copies."""
        alone = Start.MEAN if self.centred else Start.ZERO
        scales = getattr(module, self.names[0], None) is not None
        return ({alone: Start.ZERO} if scales else {}) | {Start.COPY: Start.COPY}

    def output_shape(self, module: Stock, shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """As its input."""
        return shape if shape[self.dim :][:1] == (self.sizes(module)[1],) else None


class _Norms(StatisticNorm):
    """Torch's own LayerNorm and RMSNorm, over one dimension."""

    def __init__(self, layer: type[nn.Module], *, centred: bool) -> None:
        self.layer, self.layers, self.centred = layer, (layer,), centred
        self.names = ("weight", "bias") if centred else ("weight",)

    def sizes(self, module: Stock) -> tuple[int, int]:
        return module.normalized_shape[0], module.normalized_shape[0]

    def covers(self, module: Stock) -> bool:
        return len(module.normalized_shape) == 1

    def build(self, module: Stock, sizes: tuple[int, int], **options: Any) -> nn.Module:
        placement = placement_of(module, options)
        eps = module.eps
        carry = options.get("carry", UNCHANGED)
        if eps is None and carry.eps != 1:
            # Torch's default, which is that of the precision in which it computes.
            eps = torch.finfo(torch.promote_types(placement["dtype"], torch.float32)).eps
        made: nn.Module = self.layer(
            sizes[1],
            eps=None if eps is None else eps * carry.eps,
            elementwise_affine=module.elementwise_affine,
            **placement,
        )
        return without_missing(made, module) if self.centred else made


for _entry in (_Norms(nn.LayerNorm, centred=True), _Norms(nn.RMSNorm, centred=False)):
    add_layer_type(_entry)
