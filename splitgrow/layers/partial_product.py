"""A product with a weight of several blocks, whose gradient is computed for the trained ones alone.

Both ways in which a layer runs as one take their gradients from here: with a weight that is kept
from call to call (`merged_matmul`), and with one that is joined at each call, in compiled code or
where the blocks' weights are themselves computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from splitgrow.layers.composition import Composition
from splitgrow.layers.joins import JoinStep, joined_parts
from splitgrow.layers.kernels import Kernel
from splitgrow.layers.partial_gradients import Gradients, Strip
from splitgrow.layers.weight_gradients import weight_gradients_of
from splitgrow.utils.spans import cut_out, take

_Shape = tuple[int, ...]


@dataclass(frozen=True)
class Trained:
    """The part of a weight that trains.

    Attributes:
        gradients: The strips of its gradient to compute.
        blocks: The blocks that have a share of it, and the shapes of their parts of the weight.
    """

    gradients: Gradients
    blocks: tuple[tuple[int, _Shape], ...]


def trained_part(composition: Composition, shapes: Sequence[tuple[int, _Shape]]) -> Trained | None:
    """The part of a layer's weight that trains; None if nothing does.

    Args:
        composition: The layer.
        shapes: The blocks that train, and the shapes of their parts of the weight.
    """
    if not shapes:
        return None
    gradients = weight_gradients_of(composition, tuple(block for block, _ in shapes))
    return Trained(gradients, tuple(shapes))


def shares_of(trained: Trained, strips: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of each block that trains, out of those of the strips."""
    found = []
    for block, shape in trained.blocks:
        share = trained.gradients.shares[block]
        found.append(cut_out(strips[share.strip], share.rectangles, shape))
    return found


def strip_gradient(
    kernel: Kernel, strip: Strip, outs: Tensor, ins: Tensor, weight: Tensor
) -> Tensor:
    """The gradient of a rectangle of a weight.

    Args:
        kernel: The arithmetic.
        strip: The rectangle.
        outs: The output's gradient on its channels.
        ins: The input's channels.
        weight: The whole weight.
    """
    for along, length in strip.lengths:
        weight = weight.narrow(along, 0, length)
    return kernel.weight_gradient(outs, ins, weight)


def in_autocast(*tensors: Tensor | None) -> list[Any]:
    """Tensors in the dtype in which autocast runs a multiplication, where it is on."""
    device = next(tensor.device.type for tensor in tensors if tensor is not None)
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [
        t if t is None or not t.is_floating_point() or t.dtype == torch.float64 else t.to(dtype)
        for t in tensors
    ]


def partial_product(
    kernel: Kernel,
    trained: Trained,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    parts: Sequence[Tensor],
) -> Tensor:
    """A layer's output; of its weight's gradient a backward pass computes the trained part.

    Args:
        kernel: The arithmetic.
        trained: The part that trains.
        x: The input, as the kernel prepares it.
        weight: The weight that the parts make, joined by ops that can be differentiated.
        bias: The bias, which gets its whole gradient.
        parts: The blocks' parts of the weight, all of them.
    """
    x, weight, bias = in_autocast(x, weight, bias)
    alone = not kernel.batched(x)
    x = x.unsqueeze(0) if alone else x
    own = [parts[block] for block, _ in trained.blocks]
    y: Tensor = _PartialGradients.apply(kernel, trained, x, weight, bias, *own)  # type: ignore[no-untyped-call]
    return y.squeeze(0) if alone else y


class ComputedProduct:
    """A layer whose blocks' weights are computed from their parameters at each call, and joined.

    Args:
        composition: The layer's blocks and layouts.
        kernel: Its arithmetic.
    """

    def __init__(self, composition: Composition, kernel: Kernel) -> None:
        self._composition, self._kernel = composition, kernel
        self._joins: dict[Any, tuple[JoinStep, ...]] = {}
        self._trained: dict[Any, Trained | None] = {}

    def run(self, x: Tensor) -> tuple[Tensor, float | None]:
        """The layer's output, and the share of the weight's gradient that is computed backward.

        The share is None if no part of it is computed.
        """
        kernel, parts = self._kernel, self._composition.parts("weight")
        weight, bias = self._joined("weight", parts), None
        if biases := self._composition.parts("bias"):
            bias = self._joined("bias", biases)
        x = kernel.prepared(x)
        trained = self._trained_of(parts) if torch.is_grad_enabled() else None
        if trained is None:
            return kernel.output(x, weight, bias), None
        share = trained.gradients.worth
        if share >= 1 or weight.is_complex():
            return kernel.output(x, weight, bias), 1.0
        y = partial_product(kernel, trained, x, weight, bias, [part for _, part in parts])
        return y, share

    def _joined(self, name: str, parts: list[tuple[int, Tensor]]) -> Tensor:
        having = [index for index, _ in parts]
        key = name, *having
        if key not in self._joins:
            self._joins[key] = self._composition.joins(name, having)
        return joined_parts([part for _, part in parts], self._joins[key])

    def _trained_of(self, parts: list[tuple[int, Tensor]]) -> Trained | None:
        key = tuple([(index, tuple(part.shape)) for index, part in parts if part.requires_grad])
        if key not in self._trained:
            self._trained[key] = trained_part(self._composition, key)
        return self._trained[key]


class _PartialGradients(Function):
    """A layer's output; backward, the gradients of its input, bias and trained weights.

    The joined weight gets none. It is an argument, so that a second derivative finds its parts.
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Kernel,
        trained: Trained,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *own: Tensor,
    ) -> Tensor:
        ctx.kernel, ctx.trained, ctx.dtypes = kernel, trained, [each.dtype for each in own]
        ctx.save_for_backward(x, weight)
        # For some shapes it is a view, and autograd forbids changing a Function's view in place.
        return kernel.output(x, weight, bias).detach()

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor) -> Any:
        (of_output,) = of_outputs
        kernel, trained = ctx.kernel, ctx.trained
        x, weight = ctx.saved_tensors
        dim = kernel.channel_dim
        of_x = of_bias = None
        if ctx.needs_input_grad[2]:
            of_x = kernel.input_gradient(of_output, x.shape, x, weight)
        strips = []
        for strip in trained.gradients.strips:
            outs, ins = take(of_output, dim, strip.outs), take(x, dim, strip.ins)
            strips.append(strip_gradient(kernel, strip, outs, ins, weight))
        if ctx.needs_input_grad[4]:
            others = [d for d in range(of_output.dim()) if d != dim % of_output.dim()]
            of_bias = of_output.sum(others) if others else of_output
        found = shares_of(trained, strips)
        typed = [one.to(dtype) for one, dtype in zip(found, ctx.dtypes, strict=True)]
        return None, None, of_x, None, of_bias, *typed
