"""Initializers that choose new units and helpers by the decrease of the loss that they bring.

Both sides are chosen in the metric of the layers' outputs: a step of a layer's weights is as large
as the change of the output that it makes on the batch. In this metric the best step along a
gradient G is the solution Z of Z C = -G, with the second moments C of all that the layer reads.
Nothing here forms C: its products are a forward and a backward pass of one block, which is the
same for a Linear and for any convolution, and conjugate gradients solve with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from splitgrow.growth.initializers.gradient import (
    refuse_unread,
    without_bias_,
)
from splitgrow.growth.initializers.initializer import Initializer
from splitgrow.growth.prepared import PreparedEdit, PreparedLayer
from splitgrow.growth.probe import BlockCall, Probe, UnitWeights, mean_of, probing
from splitgrow.growth.starting import set_start_values_
from splitgrow.utils.arguments import positive_int
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
_SOLVING = 20
"""The most steps of conjugate gradients."""
_DAMPING = 1e-4
"""Added to second moments, relative to their size along the right side."""
_HALVINGS = 12
_DOUBLINGS = 6


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
        outputs = [call.output for each in probe.helpers for call in _seen(calls, each)]
        found = probe.differentiated(loss, outputs)
    del loss
    by_output = dict(zip(map(id, outputs), found, strict=True))
    steps = []
    for helper in probe.helpers:
        own = calls[helper.block]
        back = [by_output[id(call.output)].detach() for call in own]
        left: list[Tensor] = []
        if helper.layer.split in readers:
            whole, back = back, _projected(helper.layer, calls[helper.layer.split], back)
            left = [own - all_ for own, all_ in zip(back, whole, strict=True)]
        gradient = _pulled_back(helper, own, back)
        batch = len(own[0].inputs)
        step = -_solved(helper, own, gradient) * batch
        if fisher:
            step = _preconditioned(helper, step, back)
        steps.append(Expansion(helper, step, gradient, left))
    return steps, calls


def _seen(calls: dict[nn.Module, list[BlockCall]], weights: UnitWeights) -> list[BlockCall]:
    """The calls of a block.

    Raises:
        ValueError: If there are none, or it is no layer whose output is linear in its weights.
    """
    found = calls[weights.block]
    if is_linear(weights.block) and found:
        return found
    kind = weights.layer.change.kind
    runs = is_linear(weights.block)
    raise ValueError(
        f"`{weights.layer.name}` is not a Linear or a convolution that the loss runs "
        f"({'the loss does not run it' if runs else f'it is {kind}'}), so its best step is not "
        f"known; choose 'gradient' or 'zero'"
    )


def _trains(probe: Probe, layer: PreparedLayer) -> bool:
    return layer.name not in probe.prepared.frozen and is_linear(layer.original)


def _made(weights: UnitWeights, call: BlockCall, tensor: Tensor) -> Tensor:
    """The output of a block with other weights and no bias."""
    bias = weights.block.bias
    held = {weights.key: tensor}
    if isinstance(bias, Tensor):
        held["bias"] = torch.zeros_like(bias)
    made: Tensor = functional_call(weights.block, held, (call.inputs, *call.others))
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


def _moments(weights: UnitWeights, calls: Sequence[BlockCall]) -> Callable[[Tensor], Tensor]:
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


def _solved(weights: UnitWeights, calls: Sequence[BlockCall], right: Tensor) -> Tensor:
    return conjugate_gradients(_moments(weights, calls), right)


def conjugate_gradients(
    product: Callable[[Tensor], Tensor], right: Tensor, steps: int = _SOLVING
) -> Tensor:
    """The solution of a symmetric, positive system, by its products.

    Args:
        product: The product with the matrix, linear, for tensors of any shape.
        right: The right side.
        steps: The most steps.
    """
    squares = _inner(right, right)
    if squares == 0.0:
        return torch.zeros_like(right)
    damping = _DAMPING * _inner(right, product(right)) / squares
    found, rest, way, left = torch.zeros_like(right), right.clone(), right.clone(), squares
    for _ in range(steps):
        moved = product(way) + damping * way
        curved = _inner(way, moved)
        if curved <= 0.0:
            break
        length = left / curved
        found = found + length * way
        rest = rest - length * moved
        now = _inner(rest, rest)
        if now <= 1e-20 * squares:
            break
        way = rest + (now / left) * way
        left = now
    return found


def _inner(one: Tensor, other: Tensor) -> float:
    return float((one.double() * other.double()).sum())


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
    reads = [part_of(call.inputs, dim, spans) for call in calls]

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


class Tiny(Initializer):
    """New units and helpers that lower the loss most, to first order.

    The natural gradient of the layer's expressivity bottleneck (Verbockhaven et al. 2024,
    https://arxiv.org/abs/2405.19816, section 4): of all that the gradient asks of the reading
    layers' outputs and that the old weights cannot do, new units take the part that is largest for
    their size on the batch. For two linear layers they are the leading singular vectors of
    S^(-1/2) N. Then a line search over the size of the helpers finds the lowest loss on the batch,
    less the part that the old weights are to do; if none is lower, the helpers stay zero. Between
    making and reading layer may be anything.

    It changes the function. Where the past is frozen, the old weights can do nothing, and new units
    take all that the gradient asks. So they do with ``project=False``; the loss then falls at once.

    Args:
        passes: The rounds of the search for new units. Each takes two runs of the loss, with
            gradients. The line search takes up to 20 runs without.
        project: Whether to leave to the old weights all that they can do.
    """

    name = "tiny"
    exact = False
    needs_data = True
    fisher = False

    def __init__(self, passes: int = 4, *, project: bool = True) -> None:
        self.passes, self.project = positive_int("passes", passes), project

    def apply(self, prepared: PreparedEdit) -> None:
        """Chooses the rows of new units, and the helpers.

        Raises:
            ValueError: If no layer reads new units that may have any values, or one that is no
                Linear and no convolution makes or reads them.
        """
        for layer in prepared.layers.values():
            set_start_values_(layer)
        with probing(prepared) as probe:
            refuse_unread(self.name, probe)
            without_bias_(probe.new)
            best = self.searched_(probe)
            _line_search_(probe, best)

    def searched_(self, probe: Probe) -> list[Expansion]:
        """Chooses the rows of new units; returns the best first steps of the helpers then."""
        best: list[Expansion] = []
        kept: list[Tensor] = []
        for left in range(self.passes, -1, -1):
            steps, calls = best_steps(probe, fisher=self.fisher, project=self.project)
            if not best or _gain(steps) > _gain(best):
                best, kept = steps, [each.tensor.detach().clone() for each in probe.new]
            if left:
                _turn_(probe, steps, calls)
        for each, values in zip(probe.new, kept, strict=True):
            each.set_(values)
        return best


def _gain(steps: Sequence[Expansion]) -> float:
    return sum(float(step.gains.sum()) for step in steps)


def _turn_(
    probe: Probe, steps: Sequence[Expansion], calls: dict[nn.Module, list[BlockCall]]
) -> None:
    """Turns new units to where the gain of their helpers grows: a round of the power method."""
    length = sum(_inner(each.step, each.step) for each in steps) ** 0.5
    if not length or not probe.new:
        return
    size = max(each.helper.size for each in steps) or 1.0
    small = torch.finfo(steps[0].step.dtype).eps ** 0.5 * size / length
    for each in steps:
        each.helper.set_(each.step * small)
    with probe.watching([each.helper.block for each in steps if each.left]) as seen:
        back = probe.gradients(probe.new, lambda: _left_out(steps, seen))
    for each in steps:
        each.helper.set_(torch.zeros_like(each.step))
    for new, gradient in zip(probe.new, back, strict=True):
        own = _seen(calls, new)
        towards = _solved(new, own, -gradient)
        spread = new.as_rows(_moments(new, own)(towards)).double()
        rows = new.as_rows(towards).double()
        values, vectors = torch.linalg.eigh(rows @ spread.T)
        keep = values > values.max().clamp_min(0) * 1e-10
        if not bool(keep.any()):
            continue
        white = vectors[:, keep] / values[keep].sqrt()
        made = white.T.flip(0) @ rows  # uncorrelated on the batch, the strongest first
        scaled = made * ((new.size or 1.0) / made.norm(dim=1).mean())
        filled = new.rows.double().clone()
        filled[: len(scaled)] = scaled
        new.set_(new.as_tensor(filled.to(new.tensor.dtype)))


def _left_out(steps: Sequence[Expansion], seen: dict[nn.Module, list[BlockCall]]) -> Tensor | None:
    """A term for the loss by which helpers see only the gradient that the old weights leave."""
    terms = [
        (call.output * left).sum()
        for each in steps
        if each.left
        for call, left in zip(seen[each.helper.block], each.left, strict=True)
    ]
    return torch.stack(terms).sum() if terms else None


def _line_search_(probe: Probe, steps: Sequence[Expansion]) -> None:
    """Scales the steps of helpers to the lowest loss; zero if none is lower.

    All that is left to the old weights counts as done by them, to first order.
    """

    def at(size: float) -> float:
        for each in steps:
            each.helper.set_(each.step * size)
        with probe.watching([each.helper.block for each in steps if each.left]) as seen:
            loss, term = probe.value(), _left_out(steps, seen)
        return loss if term is None or not math.isfinite(loss) else loss + float(mean_of(term))

    best, size, lowest = 0.0, 1.0, at(0.0)
    now = at(size)
    factor, tries = (2.0, _DOUBLINGS) if now < lowest else (0.5, _HALVINGS)
    for _ in range(tries):
        if now < lowest:
            best, lowest = size, now
        elif best:
            break
        size *= factor
        now = at(size)
    if now < lowest:
        best = size
    at(best)


class Fisher(Tiny):
    """As "tiny", in the metric of the Fisher information.

    The outputs of reading layers count by the second moments of their gradients as well. The gain
    is then the natural expansion score of SENN (Mitchell et al. 2023,
    https://arxiv.org/abs/2307.04526, equation 5), with the Fisher information in Kronecker factors.
    """

    name = "fisher"
    fisher = True
