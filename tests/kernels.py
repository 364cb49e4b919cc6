"""The kernels that tests run on: this processor's, or others.

Which kernel computes a product, and in which order it adds, depends on shapes, strides, addresses
and the processor. So a tensor that is one column wider may have other last bits in the columns that
it had before, and whether it does differs from machine to machine.

`SPLITGROW_TEST_KERNELS` chooses this in place of the machine:

* `reordered`: sums are added up in an order that is drawn from the operands' shapes, strides and
  alignment, and these decide on any rounding that kernels are free in. So the same kernel on the
  same shapes gives the same bits, and as a rule other shapes give others. Results that are exact
  on any processor stay exact: zeros, whole numbers, one term and zeros added up.
* `native`: torch's own kernels, without oneDNN.

Only the variables of torch and its libraries choose a processor's instruction set:
`ATEN_CPU_CAPABILITY`, `ONEDNN_MAX_CPU_ISA`, `MKL_ENABLE_INSTRUCTIONS`, `MKL_CBWR`.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

Kernel = Callable[..., Any]
"""What torch would have run, after the dispatch keys."""

VARIABLE = "SPLITGROW_TEST_KERNELS"
_ALIGNMENT = 64
_NUDGED = (torch.float32, torch.float64)
_installed: list[torch.library.Library] = []


def choose() -> None:
    """Has this process use the kernels that the environment asks for.

    Raises:
        ValueError: If there are none of that name.
    """
    found = os.environ.get(VARIABLE, "")
    if found not in _CHOICES:
        raise ValueError(f"{VARIABLE} is one of {sorted(_CHOICES)}, got {found!r}")
    _CHOICES[found]()


def number_of(*operands: Any) -> int:
    """A number that follows from how tensors lie in memory, and from none of their values."""
    return _number(tuple(_look(each) for each in operands if isinstance(each, Tensor)))


def _look(tensor: Tensor) -> tuple[Any, ...]:
    sizes = tuple(zip(tensor.shape, tensor.stride(), strict=True))
    strides = tuple(stride for size, stride in sizes if size > 1)  # others are never used
    return tuple(tensor.shape), strides, tensor.data_ptr() % _ALIGNMENT, str(tensor.dtype)


@cache
def _number(key: tuple[Any, ...]) -> int:
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "big")


def turned(tensor: Tensor, dim: int, number: int) -> Tensor:
    """A tensor whose positions along a dimension have another order."""
    size = tensor.shape[dim]
    if size < 2:
        return tensor
    rolled = tensor.roll(number % size, dim)
    return rolled.flip(dim) if number >> 8 & 1 else rolled


def nudged(result: Any, number: int) -> Any:
    """A result with some values off by an ulp or two, but for whole numbers.

    Not of half precision, where kernels add in single precision and round once.
    """
    if not isinstance(result, Tensor) or result.dtype not in _NUDGED or not result.numel():
        return result
    at = torch.arange(result.numel()).mul_(number | 1).add_(number)
    ulps = at.bitwise_right_shift_(3).remainder_(3).sub_(1).to(result.dtype).view(result.shape)
    off = result * (1 + torch.finfo(result.dtype).eps * ulps)
    return torch.where(result == result.round(), result, off)


def _product(kernel: Kernel, keys: Any, *operands: Any, **more: Any) -> Any:
    """A product of the last two operands, which what comes before them is added to."""
    *rest, one, other = operands
    number = number_of(*operands)
    one = turned(one, one.dim() - 1, number)
    other = turned(other, max(other.dim() - 2, 0), number)
    return kernel(keys, *rest, one, other, **more)


def _convolution(kernel: Kernel, keys: Any, x: Tensor, weight: Tensor, *rest: Any) -> Any:
    *_, transposed, _, groups = rest
    number = number_of(x, weight, *rest)
    if groups == 1:
        x, weight = turned(x, 1, number), turned(weight, 0 if transposed else 1, number)
    result = kernel(keys, x, weight, *rest)
    # Kernels over neighbours may transform their tensors first, as Winograd's do.
    return nudged(result, number) if weight[0, 0].numel() > 1 else result


def _rounded(kernel: Kernel, keys: Any, *operands: Any, **more: Any) -> Any:
    """What the kernel gives, or the first or only differentiable results of several, rounded."""
    number = number_of(*operands)
    result = kernel(keys, *operands, **more)
    if isinstance(result, Tensor):
        return nudged(result, number)
    return (nudged(result[0], number), *result[1:])


_OPS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "addmv", "dot"), _product),
    "convolution": _convolution,
    **dict.fromkeys(
        (
            *("convolution_backward", "_scaled_dot_product_flash_attention_for_cpu"),
            *("native_layer_norm", "native_group_norm", "native_batch_norm"),
            *("native_layer_norm_backward", "native_group_norm_backward"),
            *("native_batch_norm_backward", "_native_batch_norm_legit"),
            *("sum", "sum.dim_IntList", "mean", "mean.dim", "var.correction"),
            *("linalg_vector_norm", "cumsum"),
            *("_softmax", "_log_softmax", "logsumexp", "exp", "log", "tanh", "sigmoid", "erf"),
            *("gelu", "silu", "mish", "elu", "softplus", "sin", "cos", "pow.Tensor_Scalar"),
        ),
        _rounded,
    ),
}


def _reorder() -> None:
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that kernels are replaced
        for name, instead in _OPS.items():
            kernel = torch.library.get_kernel(f"aten::{name}", "CPU").call_boxed
            library.impl(name, partial(instead, kernel), "CPU", with_keyset=True)
    _installed.append(library)  # its kernels go with it


_CHOICES: dict[str, Callable[[], object]] = {
    "": lambda: None,
    "reordered": _reorder,
    "native": partial(torch.backends.mkldnn.set_flags, False),
}
