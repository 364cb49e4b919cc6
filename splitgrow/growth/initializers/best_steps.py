"""The best first step of helpers, in the metric of the outputs of the layers that have them.

A step of a layer's weights is as large as the change of the output that it makes on the batch. In
this metric the best step along a gradient G is the solution Z of Z C = -G, with the second moments
C of all that the layer reads. Nothing here forms C: its products are a forward and a backward pass
of one block, which is the same for a Linear and for any convolution, and conjugate gradients solve
with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from splitgrow.growth.initializers.conjugate_gradients import conjugate_gradients
from splitgrow.growth.prepared import PreparedLayer
from splitgrow.growth.probe import BlockCall, Probe, mean_of
from splitgrow.growth.unit_tensors import UnitWeights
from splitgrow.utils.spans import part_of

_LINEAR = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


@dataclass(frozen=True)
class Expansion:
    """The best first step of one layer's helper.

    Attributes:
        helper: The helper's weights.
        step: Their step, in the shape of the weights.
        gradient: Their gradient, without the part that is left to the old weights.
        left: For each of the helper's calls, the part of the gradient by its output that is left to
            the old weights, negative; empty if none is.
    """

    helper: UnitWeights
    step: Tensor
    gradient: Tensor
    left: Sequence[Tensor] = ()

    @property
    def gains(self) -> Tensor:
        """The decrease of the loss that each weight's step promises.

        That is to first order, less the size of the change of the layer's outputs.
        """
        return -0.5 * self.step.double() * self.gradient.double()


def is_linear(block: nn.Module) -> bool:
    """Whether a block's output is linear in its weights, and made by its call."""
    return isinstance(block, _LINEAR)


def best_steps(
    probe: Probe, *, fisher: bool, project: bool
) -> tuple[list[Expansion], dict[nn.Module, list[BlockCall]]]:
    """The best first step of each helper, and the calls of the blocks that make and read new units.

    Args:
        probe: The model with the blocks in place, helpers zero.
        fisher: Whether outputs count by the second moments of their gradients as well.
        project: Whether to leave out all that the layers could do with the inputs that they had.
    """
    blocks = [each.block for each in (*probe.new, *probe.helpers)]
    readers = [each.layer.split for each in probe.helpers if project and _trains(probe, each.layer)]
    with torch.enable_grad(), probe.watching([*blocks, *readers]) as calls:
        loss = probe.loss()
        outputs = [call.output for each in probe.helpers for call in seen_calls(calls, each)]
        found = probe.differentiated(loss, outputs)
    del loss
    by_output = dict(zip(map(id, outputs), found, strict=True))
    steps = []
    for helper in probe.helpers:
        own = calls[helper.block]
        dtype = helper.tensor.dtype  # outputs have another one under autocast
        back = [by_output[id(call.output)].detach().to(dtype) for call in own]
        left: list[Tensor] = []
        if helper.layer.split in readers:
            whole, back = back, _projected(helper.layer, calls[helper.layer.split], back)
            left = [own - all_ for own, all_ in zip(back, whole, strict=True)]
        gradient = _pulled_back(helper, own, back)
        batch = len(own[0].inputs)
        step = -solved(helper, own, gradient) * batch
        if fisher:
            step = _preconditioned(helper, step, back)
        steps.append(Expansion(helper, step, gradient, left))
    return steps, calls


def seen_calls(calls: dict[nn.Module, list[BlockCall]], weights: UnitWeights) -> list[BlockCall]:
    """The calls of a block.

    Raises:
        ValueError: If there are none, or it is no layer whose output is linear in its weights.
    """
    block, layer = weights.block, weights.layer
    if is_linear(block) and calls[block]:
        return calls[block]
    name, kind = layer.name, layer.change.kind
    if is_linear(block):
        reason = f"the loss does not run `{name}`"
    elif isinstance(layer.original, nn.RNNBase):
        reason = (
            f"`{name}` is a {kind}, which takes all its time steps in one call of torch, so the "
            f"sums in front of its gates and the gradients by them are not to be seen"
        )
    else:
        reason = f"`{name}` is a {kind}, no Linear and no convolution"
    raise ValueError(
        f"the best step of the weights of new units is not known: {reason}. Choose 'gradient', "
        f"which needs gradients by weights only, or 'zero'"
    )


def _trains(probe: Probe, layer: PreparedLayer) -> bool:
    return layer.name not in probe.prepared.frozen and is_linear(layer.original)


def _made(weights: UnitWeights, call: BlockCall, tensor: Tensor) -> Tensor:
    """The output of a block with other weights and no bias."""
    bias = weights.block.bias
    held = {weights.key: tensor}
    if isinstance(bias, Tensor):
        held["bias"] = torch.zeros_like(bias)
    made: Tensor = functional_call(
        weights.block, held, (call.inputs.to(tensor.dtype), *call.others)
    )
    return made


def _pulled_back(
    weights: UnitWeights, calls: Sequence[BlockCall], back: Sequence[Tensor]
) -> Tensor:
    """The gradient by a block's weights for gradients by its outputs."""
    total = torch.zeros_like(weights.tensor)
    for call, gradient in zip(calls, back, strict=True):
        with torch.enable_grad():
            tensor = weights.tensor.detach().clone().requires_grad_()
            made = _made(weights, call, tensor)
        total += torch.autograd.grad(made, tensor, gradient.to(made.dtype))[0]
    return mean_of(total)


def moments_by(weights: UnitWeights, calls: Sequence[BlockCall]) -> Callable[[Tensor], Tensor]:
    """The product of weights with the second moments of all that a block reads, summed."""

    def product(tensor: Tensor) -> Tensor:
        total = torch.zeros_like(tensor)
        for call in calls:
            with torch.enable_grad():
                given = tensor.detach().clone().requires_grad_()
                made = _made(weights, call, given)
            total += torch.autograd.grad(made, given, made.detach())[0]
        return mean_of(total)

    return product


def solved(weights: UnitWeights, calls: Sequence[BlockCall], right: Tensor) -> Tensor:
    """The weights of which a block's second moments make the right side."""
    return conjugate_gradients(moments_by(weights, calls), right)


def _projected(
    layer: PreparedLayer, calls: Sequence[BlockCall], back: Sequence[Tensor]
) -> list[Tensor]:
    """Gradients by a layer's outputs, without the part that its old weights can follow."""
    edit = layer.composition.blocks[-1].edit
    plain = layer.composition.until(edit - 1).room()  # on the meta device: only its form counts
    shapes = {name: parameter.shape for name, parameter in plain.named_parameters()}
    sizes = [shape.numel() for shape in shapes.values()]
    dim = layer.layer_type.channel_dim(layer.original)
    spans = layer.composition.ins.spans(edit.__gt__)
    reads = [part_of(call.inputs, dim, spans).to(back[0].dtype) for call in calls]

    def made(flat: Tensor) -> list[Tensor]:
        parts = zip(shapes.items(), torch.split(flat, sizes), strict=True)
        own = {name: part.reshape(shape) for (name, shape), part in parts}
        return [functional_call(plain, own, (x,)) for x in reads]

    def pulled(gradients: Sequence[Tensor]) -> Tensor:
        with torch.enable_grad():
            flat = reads[0].new_zeros(sum(sizes), requires_grad=True)
            outputs = made(flat)
        return mean_of(torch.autograd.grad(outputs, flat, gradients)[0])

    flat = conjugate_gradients(lambda step: pulled([y.detach() for y in made(step)]), pulled(back))
    return [g - y.detach() for g, y in zip(back, made(flat), strict=True)]


def _preconditioned(helper: UnitWeights, step: Tensor, back: Sequence[Tensor]) -> Tensor:
    """A step solved by the second moments of the gradients by the layer's outputs.

    These are the empirical Fisher information's factor for the outputs (Martens & Grosse 2015,
    https://arxiv.org/abs/1503.05671, equation 2), brought to a mean of one, with a tenth added.
    """
    dim = helper.layer.layer_type.channel_dim(helper.layer.original)
    rows = helper.as_rows(step).double()
    flat = torch.cat([g.movedim(dim, 0).reshape(len(rows), -1) for g in back], 1).double()
    moments = mean_of(flat @ flat.T)
    size = moments.diagonal().mean()
    if not size > 0:
        return step
    moments = moments / size + 0.1 * torch.eye(len(rows), dtype=moments.dtype, device=rows.device)
    return helper.as_tensor(torch.linalg.solve(moments, rows).to(step.dtype))


def left_out(steps: Sequence[Expansion], seen: dict[nn.Module, list[BlockCall]]) -> Tensor | None:
    """A term for the loss by which helpers see only the gradient that the old weights leave."""
    terms = [
        (call.output * left).sum()
        for each in steps
        if each.left
        for call, left in zip(seen[each.helper.block], each.left, strict=True)
    ]
    return torch.stack(terms).sum() if terms else None
