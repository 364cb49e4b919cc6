"""Running a grown batch norm in one pass over held blocks and moving ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from splitgrow.layers.composition import Composition
from splitgrow.layers.freezing import held
from splitgrow.layers.kernels import MixedBatchNorm
from splitgrow.layers.weight_assembly import Assembly
from splitgrow.layers.weight_views import Unfit, memory_format_of
from splitgrow.utils.spans import put, take


def moves_of(composition: Composition) -> list[bool]:
    """Whether each block's statistics move."""
    return [module.training and not held(module) for module in composition.modules]


def merged_batch_norm(assembly: Assembly, x: Tensor) -> Tensor:
    """The output of a grown batch norm, in one pass.

    Raises:
        Unfit: If the blocks, as they are now, cannot run as one.
    """
    norm: Any = assembly.composition.original
    norm._check_input_dim(x)  # noqa: SLF001
    values = assembly.values()
    mean, var = values.get("running_mean"), values.get("running_var")
    moves = moves_of(assembly.composition)
    if mean is None:  # it keeps no statistics, and always takes the batch's
        moves = [True] * len(moves)
    moving: list[Any] = [index for index, moved in enumerate(moves) if moved]
    momentum = _momentum(assembly, moving) if moving and mean is not None else 0.0
    if moving and len(moving) < len(moves):
        y = _mixed(assembly, values, x, tuple(moving), momentum)
    else:
        scale, shift = (
            assembly.differentiable(name, values[name]) if name in values else None
            for name in ("weight", "bias")
        )
        y = F.batch_norm(x, mean, var, scale, shift, bool(moving), momentum, norm.eps)
        if moving and mean is not None:
            assembly.write_back("running_mean")
            assembly.write_back("running_var")
    if mean is not None:
        for index in moving:
            assembly.composition.modules[index].num_batches_tracked.add_(1)
    return y


def _momentum(assembly: Assembly, moving: list[int]) -> float:
    momenta = {assembly.composition.modules[index].momentum for index in moving}
    if len(momenta) > 1 or None in momenta:
        raise Unfit  # a running average over all batches, whose number differs between blocks
    return float(momenta.pop())  # type: ignore[arg-type]


def _mixed(
    assembly: Assembly,
    values: dict[str, Tensor],
    x: Tensor,
    moving: tuple[int, ...],
    momentum: float,
) -> Tensor:
    """Some blocks normalise by the batch's statistics, the others by their own.

    Raises:
        Unfit: If a parameter of the others trains, or the batch is empty.
        ValueError: If there is nothing to take a variance of.
    """
    composition = assembly.composition
    if not x.numel():  # torch's own function takes that, the kernel below does not
        raise Unfit
    F._verify_batch_size(x.shape)  # type: ignore[attr-defined]  # noqa: SLF001
    norm: Any = composition.original
    for part, trains in zip(assembly.parts, assembly.flags, strict=True):
        if trains and part.block not in moving and torch.is_grad_enabled():
            raise Unfit
    edits = {composition.blocks[index].edit for index in moving}
    spans = composition.outs.spans(edits.__contains__)
    alone = len(moving) == len(spans) == 1
    own: dict[str, Tensor] = {}
    for name, value in values.items():
        if alone:  # the block's own tensors, as they are
            slots = assembly.slots(name)
            own[name] = next(
                assembly.tensors[s] for s in slots if assembly.parts[s].block in moving
            )
        else:
            own[name] = take(assembly.differentiable(name, value), 0, spans)
    y: Tensor = MixedBatchNorm.apply(  # type: ignore[no-untyped-call]
        x,
        take(x, 1, spans).contiguous(memory_format=memory_format_of(x)),
        own.get("weight"),
        own.get("bias"),
        values,
        own,
        (spans, norm.eps, momentum),
    )
    if not alone:
        for name in ("running_mean", "running_var"):
            put(values[name], 0, spans, own[name])
            assembly.write_back(name)
    return y
