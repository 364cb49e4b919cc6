"""Ops that change space and leave channels alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from splitgrow.analysis.channels.channel_axes import constant, scaled
from splitgrow.analysis.ops.op import Op, Shaped, Unknown
from splitgrow.analysis.ops.registry import each, register_op
from splitgrow.layers.shared_kernel import SHARED_KERNELS

_POOLS = """
    max_pool adaptive_max_pool avg_pool adaptive_avg_pool lp_pool max_unpool fractional_max_pool
"""
_PADS = "ReflectionPad ReplicationPad ZeroPad CircularPad"


def _pools() -> list[Any]:
    names = [f"{name}{dims}d" for name in _POOLS.split() for dims in (1, 2, 3)]
    with_indices = [f"{name}_with_indices" for name in names]
    classes = ["".join(part.title() for part in name.split("_")) for name in names]
    classes = [name.replace("1D", "1d").replace("2D", "2d").replace("3D", "3d") for name in classes]
    classes = [name.replace("Lp", "LP") for name in classes]
    functions = each(" ".join(names + with_indices), F, torch)
    return functions + each(" ".join(classes), nn)


def _spatial_dims(op: Op) -> int:
    name = op.name.lower().rstrip("_")
    return next((dims for dims in (1, 2, 3) if f"{dims}d" in name), 0)


@register_op(*_pools(), keeps_zeros=True)
def pool(op: Op) -> Any:
    """Pools space; channels and batch pass."""
    return _space_changed(op, _spatial_dims(op))


@register_op(*[getattr(nn, f"{n}{d}d") for n in _PADS.split() for d in (1, 2, 3)], keeps_zeros=True)
@register_op(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
def pad_module(op: Op) -> Any:
    """Pads space; channels and batch pass."""
    return _space_changed(op, _spatial_dims(op))


@register_op(
    nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d, F.interpolate, keeps_zeros=True
)
@register_op(F.upsample, keeps_zeros=True)
def interpolate(op: Op) -> Any:
    """Resizes space; channels and batch pass."""
    return _space_changed(op, len(op.x.axes) - 2)


def _space_changed(op: Op, dims: int) -> Any:
    first = len(op.x.axes) - dims
    for axis in op.x.axes[first:]:
        op.fix(axis, "works along it as if it were space")
    kept = op.x.axes[:first]
    for other in op.shaped():
        if other is not op.x:
            _meet(op, other, first)

    def answer(example: Any) -> Any:
        sizes = example.shape[first:]
        return Shaped(kept + tuple(constant(int(size)) for size in sizes))

    return pytree.tree_map_only(Tensor, answer, op.example)


def _meet(op: Op, other: Shaped, first: int) -> None:
    """Ties the batch and channels of another tensor to those of the first, and fixes its space."""
    reason = op.reason("ties it to a size that does not change")
    for index, axis in enumerate(other.axes):
        own = op.x.axes[index] if index < first else ()
        if own and op.groups.length(own) == op.groups.length(axis):
            op.groups.tie(own, axis, reason)
        else:
            op.fix(axis, "works along it as if it were space")
            op.fix(own, "meets it with a tensor of another size")


@register_op(F.grid_sample)
def grid_sample(op: Op) -> Any:
    """Samples space at positions that another tensor says."""
    op.fix_all("takes positions from it", but=[op.x])
    op.fix(op.x.axes[0], "samples each at positions of its own")
    return _sampled(op)


def _sampled(op: Op) -> Shaped:
    for axis in op.x.axes[2:]:
        op.fix(axis, "works along it as if it were space")
    return Shaped((*op.x.axes[:2], *(constant(int(size)) for size in op.example.shape[2:])))


@register_op(F.pad)
def pad(op: Op) -> Any:
    """Pads the last dimensions by amounts that are written down."""
    amounts = op.argument(1, "pad")
    if not isinstance(amounts, (tuple, list)):
        raise Unknown(f"is given {amounts!r} as padding")
    axes = list(op.x.axes)
    for index in range(len(amounts) // 2):
        dim = len(axes) - 1 - index
        before, behind = amounts[2 * index : 2 * index + 2]
        if not (isinstance(before, int) and isinstance(behind, int)):
            raise Unknown("pads by an amount that follows a width")
        if before or behind:
            op.fix(axes[dim], "pads it by a number of positions that is written down")
            axes[dim] = constant(int(op.example.shape[dim]))
    return Shaped(tuple(axes))


@register_op(*SHARED_KERNELS, keeps_zeros=True)
def shared_kernel(op: Op) -> Any:
    """Convolves space with the same kernels for every channel, which becomes one for each."""
    layer: Any = op.module
    axes = list(_space_changed(op, layer.dims).axes)
    axes[-1 - layer.dims] = scaled(axes[-1 - layer.dims], layer.multiplier)
    result = Shaped(tuple(axes))
    if layer.bias is not None:
        op.hear(result)
    return result


@register_op(nn.Unfold, F.unfold, keeps_zeros=True)
def unfold(op: Op) -> Any:
    """(N, C, H, W) to (N, C * window, places): each channel becomes its window's positions."""
    x = op.x
    if len(x.axes) != 4:
        raise Unknown("unfolds a tensor that is not four-dimensional")
    for axis in x.axes[2:]:
        op.fix(axis, "works along it as if it were space")
    window = int(op.example.shape[1]) // op.groups.length(x.axes[1])
    places = constant(int(op.example.shape[2]))
    return Shaped((x.axes[0], scaled(x.axes[1], window), places))
