"""Constant channels: channels that hold the same number for every input, and the layers' effect.

A channel is known if it holds one number in every sample and at every place. A layer makes such
channels if their weights are zero, or if it reads known channels only. All values are assumed to
be finite, and the network to be in evaluation mode.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from splitgrow.layers.norm_folding import norm_scale_and_shift
from splitgrow.layers.types import LayerType, Stock, computes_as, layer_type_of
from splitgrow.pruning.dead_units.weight_connections import has_weights, sections


@dataclass(frozen=True)
class Known:
    """The known channels of a tensor.

    Attributes:
        dim: The dimension of the channels, counted from the end.
        values: One number per channel, in float64; valid only where the channel is known.
        known: The channels that are known.
    """

    dim: int
    values: Tensor
    known: Tensor

    @property
    def zero(self) -> Tensor:
        """The channels that are known to be zero."""
        return self.known & (self.values == 0)

    def where(self, known: Tensor) -> Known | None:
        """The same restricted to these channels; None if no channel is left."""
        return known_or_none(self.dim, self.values, self.known & known)

    def as_operand(self) -> Tensor:
        """The numbers as a tensor that broadcasts against the tensor they were found in."""
        return self.values.reshape(-1, *[1] * (-self.dim - 1))


def known_or_none(dim: int, values: Tensor, known: Tensor) -> Known | None:
    """Known channels with finite values; None if there are none."""
    known = known & values.isfinite()
    if not bool(known.any()):
        return None
    return Known(dim, torch.where(known, values, 0.0), known)


def same(one: Known | None, other: Known | None) -> Known | None:
    """The known channels that two tensors have in common, with equal values."""
    if one is None or other is None or one.dim != other.dim:
        return None
    return one.where(other.known & (one.values == other.values))


def passes_constants(module: Stock) -> bool:
    """Whether a layer turns constant channels into constant channels, apart from its bias.

    A convolution that pads with zeros does not: its outputs at the border differ.
    """
    if computes_as(module, (nn.Linear,)):
        return True
    if not computes_as(module, _CONVOLUTIONS):
        return False  # the overlaps of a transposed one differ from place to place
    if module.padding_mode != "zeros" or module.padding == "valid":
        return True
    if module.padding == "same":
        return bool(max(module.kernel_size) == 1)
    return not any(module.padding)


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_STATISTICS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def made_by(module: Stock, given: Known | None, dim: int) -> Known | None:
    """The known channels of a layer's outputs.

    Args:
        module: A layer that has an entry among the layer types.
        given: The known channels of its inputs.
        dim: The dimension of the channels, counted from the end.
    """
    entry = layer_type_of(module)
    if entry is None or not _is_real(entry, module):
        return None
    if computes_as(module, (nn.PReLU,)):
        return given and _leaky(module, given)
    if computes_as(module, (*_STATISTICS, nn.GroupNorm)):
        return _normalised(entry, module, given, dim)
    if computes_as(module, (nn.Embedding, nn.EmbeddingBag)):
        silent = ~(module.weight != 0).any(0).cpu()
        return known_or_none(dim, torch.zeros(len(silent)).double(), silent)
    if has_weights(entry, module) and not entry.reads_back(module):
        return _weighed(entry, module, given, dim)
    if computes_as(module, (*_CONVOLUTIONS, *_TRANSPOSED)):
        return _channelwise(entry, module, given, dim)
    return None


def may_make(module: Stock, given: Tensor) -> Tensor:
    """The outputs of a layer that may be known, whatever the values of the known inputs.

    Args:
        module: A layer that has an entry among the layer types.
        given: The inputs that may be known, as bools.
    """
    entry = layer_type_of(module)
    if entry is None or not _is_real(entry, module):
        return torch.zeros(0, dtype=torch.bool)
    ins, outs = entry.sizes(module)
    if computes_as(module, (nn.PReLU,)):
        return given
    if computes_as(module, (*_STATISTICS, nn.GroupNorm)):
        off = torch.zeros_like(given)
        if module.weight is not None:
            off = (module.weight.detach() == 0).cpu()
        return given | off
    if computes_as(module, (nn.Embedding, nn.EmbeddingBag)):
        silent: Tensor = ~(module.weight.detach() != 0).any(0).cpu()
        return silent
    if has_weights(entry, module) and not entry.reads_back(module):
        silent = torch.ones(outs, dtype=torch.bool)
        for section in sections(entry, module):
            rows, columns, _ = section.weight.shape
            unknown = ~given[section.ins : section.ins + columns].to(section.weight.device)
            reads = (section.weight[:, unknown] != 0).flatten(1).any(1).cpu()
            silent[section.outs : section.outs + rows] &= ~reads
        return silent
    if computes_as(module, (*_CONVOLUTIONS, *_TRANSPOSED)):
        silent = ~(module.weight.detach().reshape(outs, -1) != 0).any(1).cpu()
        return silent | given.repeat_interleave(outs // ins)
    return torch.zeros(0, dtype=torch.bool)


def _is_real(entry: LayerType, module: Stock) -> bool:
    tensors = (getattr(module, name) for name in entry.tensors(module))
    return all(t.is_floating_point() and not t.is_meta for t in tensors if t is not None)


def _leaky(module: Stock, given: Known) -> Known | None:
    weight = _double(module.weight)
    values = torch.where(given.values >= 0, given.values, weight * given.values)
    return known_or_none(given.dim, values, given.known)


def _normalised(entry: LayerType, module: Stock, given: Known | None, dim: int) -> Known | None:
    """Norms of channels: constant where the input is, or where the weight is zero."""
    width = entry.sizes(module)[1]
    bias = _double(module.bias) if module.bias is not None else torch.zeros(width).double()
    off = torch.zeros(width, dtype=torch.bool)
    if module.weight is not None:
        off = (module.weight.detach() == 0).cpu()
    values, known = bias, off
    mean = getattr(module, "running_mean", None)
    if given is not None and mean is not None:
        scale, shift = norm_scale_and_shift(
            _double(mean),
            _double(module.running_var),
            module.eps,
            None if module.weight is None else _double(module.weight),
            bias,
        )
        values = torch.where(off, bias, given.values * scale + shift)
        known = off | given.known
    return known_or_none(dim, values, known)


def _bias(module: Stock, width: int) -> tuple[Tensor, Tensor]:
    """The bias, and the channels that equal it if nothing is read.

    A layer type that was registered as like another one may treat its bias in its own way. All that
    is known of it: without a bias it makes zeros of zeros.
    """
    bias = getattr(module, "bias", None)
    values = torch.zeros(width).double() if bias is None else _double(bias).clone()
    stock = computes_as(module, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED))
    return values, values.isfinite() if stock else values == 0


def _weighed(entry: LayerType, module: Stock, given: Known | None, dim: int) -> Known | None:
    """A layer whose outputs read many inputs: an output is known if all inputs it reads are."""
    ins, outs = entry.sizes(module)
    values, known = _bias(module, outs)
    if given is None:
        given = Known(dim, torch.zeros(ins).double(), torch.zeros(ins, dtype=torch.bool))
    usable = given.known if passes_constants(module) else given.zero
    numbers = torch.where(usable, given.values, 0.0)
    for section in sections(entry, module):
        rows, columns, _ = section.weight.shape
        of_ins = slice(section.ins, section.ins + columns)
        of_outs = slice(section.outs, section.outs + rows)
        unknown = ~usable[of_ins].to(section.weight.device)
        # A product with a mask would turn an infinite weight into nan.
        reads = (section.weight[:, unknown] != 0).flatten(1).any(1).cpu()
        known[of_outs] &= ~reads
        counts = numbers[of_ins].nonzero().flatten()
        if len(counts):
            summed = _double(section.weight[:, counts.to(section.weight.device)]).sum(-1)
            values[of_outs] += summed @ numbers[of_ins][counts]
    return known_or_none(dim, values, known)


def _channelwise(entry: LayerType, module: Stock, given: Known | None, dim: int) -> Known | None:
    """A depthwise convolution: an output is known if its kernel is zero, or its input is known."""
    ins, outs = entry.sizes(module)
    values, known = _bias(module, outs)
    kernels = _double(module.weight).reshape(outs, -1)
    silent = ~(kernels != 0).any(1)
    if given is None:
        return known_or_none(dim, values, known & silent)
    times = outs // ins
    usable = given.known if passes_constants(module) else given.zero
    numbers = torch.where(usable, given.values, 0.0).repeat_interleave(times)
    values = values + torch.where(numbers == 0, 0.0, numbers * kernels.sum(1))
    return known_or_none(dim, values, known & (silent | usable.repeat_interleave(times)))
