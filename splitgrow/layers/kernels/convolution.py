"""A convolution or transposed convolution, of one to three dimensions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from splitgrow.layers.kernels.kernel import Kernel
from splitgrow.layers.weight_views import memory_format_of

_FUNCTIONS = {
    (1, False): F.conv1d,
    (2, False): F.conv2d,
    (3, False): F.conv3d,
    (1, True): F.conv_transpose1d,
    (2, True): F.conv_transpose2d,
    (3, True): F.conv_transpose3d,
}


@dataclass(frozen=True, slots=True)
class Convolution(Kernel):
    """A convolution whose padding is the same on both sides, with zeros.

    Attributes:
        stride: The step in each dimension of space; the others are by dimension, too.
        padding: The number of zeros added at both ends.
        dilation: The distance of the kernel's positions.
        output_padding: Of a transposed one: the positions by which the output is longer at one end.
        transposed: Whether it is a transposed convolution.
        groups: The number of groups; 0 for one of each input channel.
        before: The padding that the input gets before, as `torch.nn.functional.pad` takes it, where
            it differs between both sides or is not by zeros.
        mode: The mode of that padding.
        reach: The kernel's size, where the input gets as many zeros as make its steps fit, the odd
            one behind.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    transposed: bool
    groups: int
    before: tuple[int, ...] = ()
    mode: str = "constant"
    reach: tuple[int, ...] = ()

    def prepared(self, x: Tensor) -> Tensor:
        """The input with its padding, where the convolution itself cannot add that."""
        if not self.reach:
            return F.pad(x, self.before, self.mode) if self.before else x
        ends: list[int] = []
        sizes = x.shape[x.dim() - len(self.reach) :]
        for size, kernel, step, apart in zip(
            sizes, self.reach, self.stride, self.dilation, strict=True
        ):
            steps = -(-size // step)
            added = max(0, (steps - 1) * step + (kernel - 1) * apart + 1 - size)
            ends = [added // 2, added - added // 2, *ends]  # the last dimension first
        return F.pad(x, ends) if any(ends) else x

    @property
    def channel_dim(self) -> int:  # type: ignore[override]
        """The dimension of the channels."""
        return -1 - len(self.stride)

    def batched(self, x: Tensor) -> bool:
        """Whether there is a batch dimension before the channels."""
        return x.dim() == len(self.stride) + 2

    def _groups(self, channels: int) -> int:
        return self.groups or channels

    def output(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer's output, (batch, out, *space)."""
        function = _FUNCTIONS[len(self.stride), self.transposed]
        groups = self._groups(x.shape[self.channel_dim])
        if self.transposed:
            return function(  # type: ignore[no-any-return, operator]
                x,
                weight,
                bias,
                self.stride,
                self.padding,
                self.output_padding,
                groups,
                self.dilation,
            )
        return function(  # type: ignore[no-any-return, operator]
            x, weight, bias, self.stride, self.padding, self.dilation, groups
        )

    def input_gradient(
        self, of_output: Tensor, shape: tuple[int, ...], x: Tensor | None, weight: Tensor
    ) -> Tensor:
        """(batch, in, *space)."""
        if x is None:  # torch takes an input but reads its shape only
            x = of_output.new_empty(1).expand(shape)
            if memory_format_of(of_output) is not torch.contiguous_format:
                weight = _channels_last(weight)  # the weight says then how the gradient lies
        return self._backward(of_output, x, weight, [True, False, False])[0]

    def weight_gradient(self, of_output: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """Of the weight's shape, summed over batch and space."""
        if self._is_pointwise(weight):
            return _pointwise(of_output, x[self._seen()]).reshape(weight.shape)
        return self._backward(of_output, x, weight, [False, True, False])[1]

    def gradients(self, of_output: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Both gradients, by one call, as torch computes them."""
        return self._backward(of_output, x, weight, [True, True, False])[:2]

    def _is_pointwise(self, weight: Tensor) -> bool:
        """Whether it multiplies the channels at each position by themselves."""
        alone = self.groups == 1 and not self.transposed and not any(self.padding)
        return alone and all(size == 1 for size in weight.shape[2:])

    def _seen(self) -> tuple[slice, ...]:
        """The positions that a pointwise convolution looks at."""
        return (slice(None), slice(None), *(slice(None, None, step) for step in self.stride))

    def _backward(
        self, of_output: Tensor, x: Tensor, weight: Tensor, mask: list[bool]
    ) -> tuple[Tensor, Tensor]:
        gradients = torch.ops.aten.convolution_backward(
            of_output,
            x,
            weight,
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self._groups(x.shape[1]),
            mask,
        )
        return gradients[0], gradients[1]


def _channels_last(weight: Tensor) -> Tensor:
    """A weight with the strides of channels last: a view where the values lie so already.

    Those of a depthwise or pointwise convolution lie in both orders, and torch goes by the strides.
    """
    last = weight.movedim(1, -1)
    return last.reshape(-1).view(last.shape).movedim(-1, 1)


def _pointwise(of_output: Tensor, x: Tensor) -> Tensor:
    """(out, in), by a product of matrices, which copies no slices of channels.

    With channels first there is one product for each sample, with channels last a single one.
    """
    if x.stride(1) == 1 and of_output.stride(1) == 1:
        rows, columns = of_output.movedim(1, -1).flatten(0, -2), x.movedim(1, -1).flatten(0, -2)
        if rows.shape[1] > columns.shape[1]:  # the narrow one first: up to seven times faster
            return columns.T.mm(rows).T
        return rows.T.mm(columns)
    return of_output.flatten(2).bmm(x.flatten(2).transpose(1, 2)).sum(0)
