"""Running a grown convolution or Linear in code that torch's compiler makes.

Compiled code joins the blocks' tensors anew in every call, since a tensor that is kept could be
guarded only by numbers that change. Its gradients are those of the trained parts alone, by ops
that the compiler follows. All that depends on the layer's structure alone is a constant of the
code, and the code goes with it: growth makes a new object, and no size becomes a symbol.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from splitgrow.layers.blockwise import BlockStep, Blockwise, run_apart
from splitgrow.layers.composition import Composition, JoinStep, joined_parts
from splitgrow.layers.hooks import has_run_hooks
from splitgrow.layers.kernels import Kernel
from splitgrow.layers.merging_costs import LARGEST_MERGED, bytes_of, rows_worth_copying
from splitgrow.layers.partial_gradients import Gradients
from splitgrow.layers.weight_gradients import weight_gradients_of
from splitgrow.utils.spans import cut_out, take


@dataclass(frozen=True)
class _Form:
    """Whatever of a layer is constant as long as its blocks stay as they are.

    Attributes:
        few: The size of an input from which on they run as one.
        weight: How the blocks' weights are joined.
        bias: How their biases are.
        steps: How the blocks run by themselves.
    """

    few: float
    weight: tuple[JoinStep, ...]
    bias: tuple[JoinStep, ...]
    steps: tuple[BlockStep, ...]


@dataclass(frozen=True)
class _Trained:
    """The part of the weight that trains.

    Attributes:
        gradients: The strips of its gradient to compute.
        blocks: The blocks that have a share of it, and the shapes of their weights.
    """

    gradients: Gradients
    blocks: tuple[tuple[int, tuple[int, ...]], ...]


class Compiled:
    """A layer that multiplies with a weight, in compiled code.

    Args:
        composition: Its blocks that are shown.
        kernel: Its arithmetic.
    """

    def __init__(self, composition: Composition, kernel: Kernel) -> None:
        self._composition, self._kernel = composition, kernel

    # The compiler runs these once, and its code holds for this object only.
    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _form(self) -> _Form:
        composition = self._composition
        rows = rows_worth_copying(
            composition, sum(w.numel() for _, w in composition.parts("weight"))
        )
        if bytes_of(composition) > LARGEST_MERGED or any(map(has_run_hooks, composition.modules)):
            rows = math.inf
        reads = composition.sizes[0] if composition.layer_type.reads_channels else 1
        weight, bias = (
            composition.joins(name, [index for index, _ in parts]) if parts else ()
            for name in ("weight", "bias")
            for parts in [composition.parts(name)]
        )
        return _Form(rows * reads, weight, bias, Blockwise(composition).steps)

    @torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
    def _trained(self, flags: tuple[bool, ...]) -> _Trained | None:
        """The part that trains; None if there is none, or all of it is to be computed."""
        composition = self._composition
        blocks = tuple(index for index, trains in enumerate(flags) if trains)
        if not blocks:
            return None
        gradients = weight_gradients_of(composition, blocks)
        if gradients.worth >= 1:
            return None
        weights: list[Any] = [composition.modules[block].weight for block in blocks]
        shapes = [tuple(int(size) for size in weight.shape) for weight in weights]
        return _Trained(gradients, tuple(zip(blocks, shapes, strict=True)))

    def run(self, x: Tensor) -> Tensor:
        """The layer's output."""
        form, modules, kernel = self._form(), self._composition.modules, self._kernel
        if x.numel() < form.few:
            return run_apart(form.steps, kernel.channel_dim, modules, x)
        weights: list[Any] = [module.weight for module in modules]
        biases: list[Any] = [module.bias for module in modules if module.bias is not None]
        weight, bias = joined_parts(weights, form.weight), None
        if biases:
            bias = joined_parts(biases, form.bias)
        x = kernel.prepared(x)
        trained = None
        if torch.is_grad_enabled() and not _is_transformed() and not weight.is_complex():
            flags = []
            for each in weights:
                flags.append(each.requires_grad)
            trained = self._trained(tuple(flags))
        if trained is None:
            return kernel.output(x, weight, bias)
        if torch.is_autocast_enabled(x.device.type):
            x, weight, bias = _autocast(x), _autocast(weight), _autocast(bias)
        alone = not kernel.batched(x)
        x = x.unsqueeze(0) if alone else x
        own = [weights[block] for block, _ in trained.blocks]
        y: Tensor = _PartialGradients.apply(kernel, trained, x, weight, bias, *own)  # type: ignore[no-untyped-call]
        return y.squeeze(0) if alone else y


def compiled_form(composition: Composition) -> Compiled | None:
    """How a layer runs in compiled code; None if it has no way of its own there."""
    kernel = composition.layer_type.kernel(composition.original)
    if kernel is None or len(composition.modules) == 1:
        return None
    return Compiled(composition, kernel)


def _autocast(tensor: Tensor | None) -> Any:
    """A tensor in the dtype in which autocast runs a multiplication."""
    if tensor is None or not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def _is_transformed() -> bool:
    return torch._C._are_functorch_transforms_active()  # noqa: SLF001


class _PartialGradients(Function):
    """A layer's output; backward, the gradients of its input, bias and trained weights.

    The joined weight gets none. It is an argument, so that a second derivative finds its parts.
    """

    @staticmethod
    def forward(
        ctx: Any,
        kernel: Kernel,
        trained: _Trained,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *own: Tensor,
    ) -> Tensor:
        ctx.kernel, ctx.trained, ctx.dtypes = kernel, trained, [each.dtype for each in own]
        ctx.save_for_backward(x, weight)
        return kernel.output(x, weight, bias)

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
            like = weight
            for along, length in strip.lengths:
                like = like.narrow(along, 0, length)
            outs, ins = take(of_output, dim, strip.outs), take(x, dim, strip.ins)
            strips.append(kernel.weight_gradient(outs, ins, like))
        if ctx.needs_input_grad[4]:
            others = [d for d in range(of_output.dim()) if d != dim % of_output.dim()]
            of_bias = of_output.sum(others) if others else of_output
        found = []
        for (block, shape), dtype in zip(trained.blocks, ctx.dtypes, strict=True):
            share = trained.gradients.shares[block]
            found.append(cut_out(strips[share.strip], share.rectangles, shape).to(dtype))
        return None, None, of_x, None, of_bias, *found
