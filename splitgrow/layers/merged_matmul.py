"""Running a grown convolution or Linear as one, with the gradient of the trained parts only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from splitgrow.layers.kernels import Kernel
from splitgrow.layers.partial_product import (
    Trained,
    in_autocast,
    shares_of,
    strip_gradient,
    trained_part,
)
from splitgrow.layers.weight_assembly import Assembly
from splitgrow.layers.weight_views import Unfit, memory_format_of
from splitgrow.utils.spans import Spans, shared, take, union


@dataclass(frozen=True)
class _Plan:
    """The gradients that a backward pass computes, for the parts that train.

    Attributes:
        trained: Of the weight; None if nothing of it trains.
        slots: The parts that train: of the weight, then of the bias.
        of_bias: The positions of the bias's slots.
        columns: The input channels that are used, if not all of them.
    """

    trained: Trained | None
    slots: tuple[int, ...]
    of_bias: tuple[Spans, ...]
    columns: Spans | None


class MergedMatmul:
    """A layer that multiplies with a weight."""

    def __init__(self, assembly: Assembly, kernel: Kernel) -> None:
        self.assembly, self.kernel = assembly, kernel
        self._plans: dict[tuple[bool, ...], _Plan] = {}

    def run(self, x: Tensor) -> tuple[Tensor, float | None]:
        """The layer's output, and the share of the weight's gradient that is computed backward.

        The share is None if no part of it is computed.

        Raises:
            Unfit: If the blocks, as they are now, cannot run as one.
        """
        kernel, assembly = self.kernel, self.assembly
        values = assembly.values()
        weight, bias = values["weight"], values.get("bias")
        x = kernel.prepared(x)
        x, weight, bias = in_autocast(x, weight, bias)
        flags = assembly.flags
        if not torch.is_grad_enabled() or not (x.requires_grad or any(flags)):
            return kernel.output(x, weight, bias), None
        if weight.is_complex():
            raise Unfit  # its gradients are conjugated, which the kernels do not do
        plan = self._plans.get(flags)
        if plan is None:
            plan = self._plans[flags] = self._plan()
        alone = not kernel.batched(x)
        x = x.unsqueeze(0) if alone else x
        columns = None
        if plan.columns is not None:
            columns = take(x, kernel.channel_dim, plan.columns)
            columns = columns.contiguous(memory_format=memory_format_of(x))
        tensors = [assembly.tensors[slot] for slot in plan.slots]
        call = _Call(self, plan, weight, bias, self.versions())
        y: Tensor = _MatmulGradients.apply(call, x, columns, *tensors)  # type: ignore[no-untyped-call]
        share = plan.trained.gradients.worth if plan.trained is not None else None
        return y.squeeze(0) if alone else y, share

    def versions(self) -> list[int]:
        """Numbers that change when a part of the weight is changed in place."""
        assembly = self.assembly
        return [
            0 if tensor.is_inference() else tensor._version  # noqa: SLF001
            for tensor in (assembly.tensors[slot] for slot in assembly.slots("weight"))
        ]

    def _plan(self) -> _Plan:
        assembly, composition = self.assembly, self.assembly.composition
        weights = [slot for slot in assembly.slots("weight") if assembly.flags[slot]]
        biases = [slot for slot in assembly.slots("bias") if assembly.flags[slot]]
        parts = [assembly.parts[slot] for slot in weights]
        trained = trained_part(composition, [(part.block, tuple(part.shape)) for part in parts])
        columns = None
        if trained is not None and len(trained.gradients.strips) == 1:
            ins = trained.gradients.strips[0].ins
            columns = ins if ins != ((0, composition.sizes[0]),) else None
        of_bias = tuple(
            union(((s.start, s.stop - s.start),) for (s,), _ in assembly.parts[slot].regions)
            for slot in biases
        )
        return _Plan(trained, (*weights, *biases), of_bias, columns)


class _Call(NamedTuple):
    """The data that one forward pass hands to its backward pass."""

    layer: MergedMatmul
    plan: _Plan
    weight: Tensor
    bias: Tensor | None
    versions: list[int]


class _MatmulGradients(Function):
    """A layer's output; backward, the gradients of its input and of its weight's trained parts."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, columns: Tensor | None, *_: Tensor) -> Tensor:
        ctx.call, ctx.shape = call, x.shape
        needed = call.plan.trained is not None and columns is None
        ctx.save_for_backward(x if needed else None, columns)
        # For some shapes it is a view, and autograd forbids changing a Function's view in place.
        return call.layer.kernel.output(x, call.weight, call.bias).detach()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (of_output,) = gradients
        layer, plan, weight, _, versions = ctx.call
        x, columns = ctx.saved_tensors
        dim = layer.kernel.channel_dim
        of_x, strips, slices = None, [], {}
        own = weight
        if ctx.needs_input_grad[1]:
            if layer.versions() != versions:
                raise RuntimeError(
                    "one of the variables needed for gradient computation has been modified by an "
                    "inplace operation: a parameter of a grown layer was changed between its "
                    "forward and its backward pass"
                )
            if torch.is_grad_enabled():  # the gradient will be differentiated
                own = layer.assembly.composition.assembled("weight").to(weight.dtype)
            if plan.trained is None or plan.trained.gradients.worth < 1:
                of_x = layer.kernel.input_gradient(of_output, ctx.shape, x, own)
        for strip in plan.trained.gradients.strips if plan.trained is not None else ():
            if ctx.needs_input_grad[1] and of_x is None:
                of_x, whole = layer.kernel.gradients(of_output, x, own)
                strips.append(whole)
                continue
            outs = take(of_output, dim, strip.outs)
            ins = columns if columns is not None else take(x, dim, strip.ins)
            strips.append(strip_gradient(layer.kernel, strip, outs, ins, weight))
            slices[strip.outs] = outs
        found = shares_of(plan.trained, strips) if plan.trained is not None else []
        parts = [layer.assembly.parts[slot] for slot in plan.slots[: len(found)]]
        found = [part.laid(one) for part, one in zip(parts, found, strict=True)]
        if plan.of_bias:
            found += _of_biases(plan.of_bias, of_output, slices, dim)
        return None, of_x, None, *found


def _of_biases(
    places: tuple[Spans, ...], of_output: Tensor, slices: dict[Spans, Tensor], dim: int
) -> list[Tensor]:
    """The gradients of biases: sums over all but the channels."""
    chosen = union(places)
    part = slices.get(chosen)
    outs = take(of_output, dim, chosen) if part is None else part
    others = [d for d in range(outs.dim()) if d != dim % outs.dim()]
    total = outs.sum(others) if others else outs
    return [
        take(total, 0, tuple((place, length) for place, _, length in shared(chosen, own)))
        for own in places
    ]
