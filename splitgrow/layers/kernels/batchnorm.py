"""A batch norm of which some channels are held and the others move with the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from splitgrow.utils.spans import put, take


class MixedBatchNorm(Function):
    """Normalises held channels by their running statistics and the others by the batch's.

    It takes one pass over all channels, and torch's own batch norm on the moving ones, usually few.
    It keeps only the moving channels for the backward pass: for held ones whose scale is frozen,
    the input gradient is the output gradient times a constant.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        moving: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        *rest: Any,
    ) -> Tensor:
        """The normalised channels.

        Args:
            ctx: Torch's context.
            x: (batch, channels, *space).
            moving: The moving channels of x, in order. A second derivative enters by this argument.
            weight: The scale of the moving channels.
            bias: Their shift.
            rest: The norm's tensors by name; those of the moving channels, whose running statistics
                are changed; the positions of the moving channels, eps and momentum.
        """
        every, own, (spans, eps, momentum) = rest
        mean, var, scale = every["running_mean"], every["running_var"], every.get("weight")
        y = torch.batch_norm(x, scale, every.get("bias"), mean, var, False, 0.0, eps, True)
        part, batch_mean, batch_deviation = torch.native_batch_norm(
            moving, weight, bias, own["running_mean"], own["running_var"], True, momentum, eps
        )
        put(y, 1, spans, part)
        if ctx.needs_input_grad[0]:
            factor = torch.rsqrt(var + eps)
            ctx.factor = factor if scale is None else factor.mul_(scale)
        ctx.where = spans, eps
        ctx.save_for_backward(moving, weight, batch_mean, batch_deviation)
        return y

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor) -> Any:
        """The gradients of x, scale and shift."""
        (of_output,) = of_outputs
        spans, eps = ctx.where
        moving, weight, mean, deviation = ctx.saved_tensors
        mask = [ctx.needs_input_grad[0], *ctx.needs_input_grad[2:4]]
        part = take(of_output, 1, spans)
        of_moving, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            part, moving, weight, None, None, mean, deviation, True, eps, mask
        )
        of_x = None
        if mask[0]:
            factor = ctx.factor.to(of_output.dtype)
            of_x = of_output * factor.reshape(-1, *[1] * (of_output.dim() - 2))
            put(of_x, 1, spans, of_moving)
        # Nothing for `moving`: x has it.
        return of_x, None, of_weight if mask[1] else None, of_bias if mask[2] else None, *[None] * 3
