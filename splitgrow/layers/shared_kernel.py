"""Convolutions that apply the same kernel to every channel, however many there are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from splitgrow.layers.scripting import Unscriptable

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_DEPTHWISE: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}
_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


class _SharedKernelConv(Unscriptable, nn.Module):
    """The common base of the layers for one, two and three dimensions of space."""

    dims: ClassVar[int]
    """The number of dimensions of space."""

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(  # noqa: PLR0913 - the options of torch's convolutions
        self,
        kernel_size: int | Sequence[int],
        *,
        multiplier: int = 1,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = self._numbers("kernel_size", kernel_size, least=1)
        self.multiplier = _whole("multiplier", multiplier, least=1)
        self.stride = self._numbers("stride", stride, least=1)
        self.dilation = self._numbers("dilation", dilation, least=1)
        self.padding = self._padding(padding)
        if padding_mode not in _PADDING_MODES:
            raise ValueError(f"padding_mode is one of {_PADDING_MODES}, not {padding_mode!r}")
        self.padding_mode = padding_mode
        self._pad_before, self._pad_within = self._pads()
        options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(self.multiplier, 1, *self.kernel_size, **options))
        if bias:
            self.bias = nn.Parameter(torch.empty(self.multiplier, **options))
        else:
            self.register_parameter("bias", None)
        self.reset_parameters()

    def _numbers(self, name: str, value: Any, *, least: int) -> tuple[int, ...]:
        """One whole number for each dimension of space.

        Raises:
            ValueError: If there are too many or too few.
        """
        values = tuple(value) if isinstance(value, (tuple, list)) else (value,) * self.dims
        if len(values) != self.dims:
            raise ValueError(f"{name} is one number or {self.dims}, not {value!r}")
        return tuple(_whole(name, each, least) for each in values)

    def _padding(self, padding: Any) -> tuple[int, ...] | str:
        if not isinstance(padding, str):
            return self._numbers("padding", padding, least=0)
        if padding not in ("same", "valid"):
            raise ValueError(f"padding is 'same', 'valid' or whole numbers, not {padding!r}")
        if padding == "same" and max(self.stride) > 1:
            raise ValueError(f"padding='same' needs a stride of 1, not {self.stride}")
        return padding

    def _pads(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The padding that `F.pad` adds before the convolution, and the convolution's own."""
        ends: list[tuple[int, int]] = [(0, 0)] * self.dims
        if self.padding == "same":
            spans = zip(self.dilation, self.kernel_size, strict=True)
            added = (dilation * (size - 1) for dilation, size in spans)
            ends = [(each // 2, each - each // 2) for each in added]
        elif not isinstance(self.padding, str):
            ends = [(each, each) for each in self.padding]
        if self.padding_mode == "zeros" and all(start == end for start, end in ends):
            return (), tuple(start for start, _ in ends)
        return tuple(chain.from_iterable(reversed(ends))), (0,) * self.dims

    def reset_parameters(self) -> None:
        """Draws weight and bias anew, as torch's convolutions do."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(math.prod(self.kernel_size))
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, *space) or (C, *space) to the same with ``C * multiplier`` channels.

        Raises:
            ValueError: If the input has other dimensions, or no channels.
        """
        if x.dim() not in (self.dims + 1, self.dims + 2) or not x.shape[-1 - self.dims]:
            raise ValueError(
                f"{type(self).__name__} takes (N, C, *space) or (C, *space) with {self.dims} "
                f"dimensions of space and at least one channel, not a tensor of shape "
                f"{tuple(x.shape)}"
            )
        if self._pad_before:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = F.pad(x, self._pad_before, mode)
        return self._apart(x) if self._better_apart(x) else self._grouped(x)

    # Measured on one core (EPYC), forward and backward, in single precision. Channels as separate
    # samples, (N * C, 1, *space), take 1.2 to 80 times as long as one grouped convolution: oneDNN
    # fills vectors with the channels of a depthwise convolution, and a single channel fills none.
    # Where each channel has several outputs, oneDNN does not treat the grouped convolution as
    # depthwise; one convolution for each kernel, joined, takes 0.25 to 0.8 times as long. This
    # gains nothing with fewer channels than a vector holds, many kernels, or double precision,
    # which oneDNN does not do; nor in one or three dimensions, or with dilated kernels or larger
    # ones than 3 by 3, whose gradients are slow.

    def _better_apart(self, x: Tensor) -> bool:
        """Whether to run each kernel by itself: by shapes alone, so that results never vary."""
        small = self.dims == 2 and max(self.kernel_size) <= 3 and max(self.dilation) == 1
        here = _ONEDNN and x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16)
        return here and small and 2 <= self.multiplier <= 4 and x.shape[-1 - self.dims] >= 8

    def _grouped(self, x: Tensor) -> Tensor:
        """By one depthwise convolution."""
        channels = x.shape[-1 - self.dims]
        weight = self.weight.expand(channels, *self.weight.shape).flatten(0, 1)
        bias: Tensor | None = self.bias
        if bias is not None:
            bias = bias.expand(channels, -1).flatten()
        return self._convolved(x, weight, bias, channels)

    def _apart(self, x: Tensor) -> Tensor:
        """By one depthwise convolution for each kernel."""
        channels = x.shape[-1 - self.dims]
        outputs = []
        for index in range(self.multiplier):
            weight = self.weight[index].expand(channels, *self.weight.shape[1:])
            bias = None if self.bias is None else self.bias[index].expand(channels)
            outputs.append(self._convolved(x, weight, bias, channels))
        dim = x.dim() - self.dims
        return torch.stack(outputs, dim).flatten(dim - 1, dim)

    def _convolved(self, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        return _CONVOLUTIONS[self.dims](
            x, weight, bias, self.stride, self._pad_within, self.dilation, groups
        )

    def depthwise(self, channels: int) -> nn.Conv1d | nn.Conv2d | nn.Conv3d:
        """The stock layer that computes the same for inputs with that many channels.

        Its weight is (channels * multiplier, 1, *kernel_size), a copy of the kernel for each
        channel; each copy then trains by itself.

        Raises:
            TypeError: If the number is not a whole one.
            ValueError: If it is less than 1.
        """
        channels = _whole("channels", channels, least=1)
        options: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
        }
        options |= {"groups": channels, "bias": self.bias is not None}
        # Without values at first, so that no random numbers are drawn.
        stock = _DEPTHWISE[self.dims](
            channels, channels * self.multiplier, device="meta", **options
        )
        stock.weight = _repeated(self.weight, channels)
        if self.bias is not None:
            stock.bias = _repeated(self.bias, channels)
        return stock.train(self.training)

    def extra_repr(self) -> str:
        """The kernel's size, and the options that differ from the defaults."""
        parts = [str(self.kernel_size)]
        if self.multiplier > 1:
            parts.append(f"multiplier={self.multiplier}")
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1)):
            value = getattr(self, name)
            if value != (default,) * self.dims:
                parts.append(f"{name}={value!r}")
        if self.bias is None:
            parts.append("bias=False")
        if self.padding_mode != "zeros":
            parts.append(f"padding_mode={self.padding_mode!r}")
        return ", ".join(parts)


class SharedKernelConv1d(_SharedKernelConv):
    """The same kernel applied to each channel of (N, C, L) or (C, L).

    As `SharedKernelConv2d`, in one dimension of space.

    Example:
        >>> import torch, splitgrow
        >>> average = splitgrow.SharedKernelConv1d(3, padding=1, bias=False)
        >>> _ = torch.nn.init.constant_(average.weight, 1 / 3)
        >>> average(torch.tensor([[0.0, 3.0, 0.0], [6.0, 6.0, 6.0]])).detach()
        tensor([[1., 1., 1.],
                [4., 6., 4.]])
    """

    dims = 1


class SharedKernelConv2d(_SharedKernelConv):
    """The same kernel applied to each channel of (N, C, H, W) or (C, H, W).

    The output has ``C * multiplier`` channels: number ``c * multiplier + m`` is kernel `m` on
    channel `c`. It computes the same as `nn.Conv2d` with ``groups=C`` and the same weights for all
    channels, with the parameters of one channel: weight (multiplier, 1, *kernel_size) and bias
    (multiplier,). Their gradients are the sums over the channels. It takes any number of channels,
    so it grows with its input and needs no extra parameters; `splitgrow.fuse` puts a depthwise
    convolution in its place.

    Args:
        kernel_size: One number, or one for each dimension of space; likewise the other sizes.
        multiplier: The number of kernels, each of which is applied to every channel.
        stride: The step from one position to the next.
        padding: The number of positions added on both sides; "valid" for none, "same" to keep the
            size.
        dilation: The step within the kernel.
        bias: Whether each kernel adds a number of its own.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        device: Of weight and bias.
        dtype: Of weight and bias.

    Raises:
        TypeError: If a number is not a whole one.
        ValueError: If a number is too small, there are too many or too few of them, or another
            argument is none of those above; in the call, if the input has other dimensions.

    Example:
        >>> import torch, splitgrow
        >>> blur = splitgrow.SharedKernelConv2d(3, multiplier=2, padding=1)
        >>> blur(torch.randn(8, 16, 32, 32)).shape
        torch.Size([8, 32, 32, 32])
        >>> sum(p.numel() for p in blur.parameters())  # 2 * 3 * 3 + 2
        20
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 1), blur, torch.nn.Conv2d(32, 4, 1))
        >>> net = splitgrow.growable(net, torch.randn(1, 3, 8, 8))
        >>> edit = net.expand_layer("0", 4)
        >>> blur(net[0](torch.randn(1, 3, 8, 8))).shape
        torch.Size([1, 40, 8, 8])
        >>> splitgrow.fuse(net).get_submodule("1")
        Conv2d(20, 40, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=20)
    """

    dims = 2


class SharedKernelConv3d(_SharedKernelConv):
    """The same kernel applied to each channel of (N, C, D, H, W) or (C, D, H, W).

    As `SharedKernelConv2d`, in three dimensions of space.

    Example:
        >>> import torch, splitgrow
        >>> layer = splitgrow.SharedKernelConv3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        >>> layer(torch.randn(2, 5, 4, 8, 8)).shape
        torch.Size([2, 5, 4, 4, 4])
    """

    dims = 3


SHARED_KERNELS = (SharedKernelConv1d, SharedKernelConv2d, SharedKernelConv3d)


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is made of whole numbers, not {value!r}")
    if value < least:
        raise ValueError(f"{name} is at least {least}, not {value}")
    return value


def _repeated(parameter: nn.Parameter, times: int) -> nn.Parameter:
    repeats = (times, *(1,) * (parameter.dim() - 1))
    return nn.Parameter(parameter.detach().repeat(repeats), parameter.requires_grad)
