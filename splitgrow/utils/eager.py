"""Whether a call computes with plain tensors, as against being traced, transformed or watched."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def is_eager(x: object) -> bool:
    """Whether a call computes with plain tensors, as against being traced or transformed."""
    return (
        isinstance(x, Tensor)
        and type(x) in (Tensor, nn.Parameter)
        and not x.is_meta
        and not torch._C._are_functorch_transforms_active()  # noqa: SLF001
        and forward_ad._current_level < 0  # noqa: SLF001
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    )


def is_watched() -> bool:
    """Whether a torch function mode sees every op, such as the one that traces forward."""
    compiling = torch.compiler.is_compiling()  # which then has no mode, and may not know to ask
    return not compiling and bool(torch._C._len_torch_function_stack())  # noqa: SLF001
