"""Ops that change space and leave channels alone, and reductions and mixing along a dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from splitgrow.axes import constant, scaled
from splitgrow.rules.joins import dimension
from splitgrow.rules.registry import Op, Shaped, Unknown, each, register_op
from splitgrow.sharedkernel import SHARED_KERNELS

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

    def answer(example: Any) -> Any:
        sizes = example.shape[first:]
        return Shaped(kept + tuple(constant(int(size)) for size in sizes))

    return pytree.tree_map_only(Tensor, answer, op.example)


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


_REDUCTIONS = "mean sum amax amin prod std var logsumexp norm median any all max min argmax argmin"


@register_op(*each(_REDUCTIONS, torch), *[n for n in _REDUCTIONS.split() if hasattr(Tensor, n)])
def reduction(op: Op) -> Any:
    """Reduces dimensions; one whose channels it mixes cannot grow, the others pass."""
    if isinstance(op.argument(1, "dim"), Shaped):
        raise Unknown("compares two tensors")
    ndim = len(op.x.axes)
    dim = op.argument(1, "dim", op.kwargs.get("axis"))
    keep = op.argument(2, "keepdim", False)
    if op.name == "norm" and "dim" not in op.kwargs:  # its second argument is the order
        dim = op.argument(2, "dim")
        keep = op.argument(3, "keepdim", False)
    if isinstance(dim, bool) or not isinstance(dim, (int, tuple, list, type(None))):
        raise Unknown(f"reduces {dim!r}")
    given = (
        range(ndim)
        if dim is None or dim in ((), [])
        else (dim if not isinstance(dim, int) else [dim])
    )
    reduced = {dimension(op, op.x, d) for d in given}
    axes = []
    for index, axis in enumerate(op.x.axes):
        if index not in reduced:
            axes.append(axis)
            continue
        op.fix(axis, "mixes all its channels into one value")
        if keep:
            axes.append(constant(1))
    return pytree.tree_map_only(Tensor, lambda _: Shaped(tuple(axes)), op.example)


_MIXING = "softmax log_softmax softmin normalize cumsum cumprod sort argsort flip roll logcumsumexp"


@register_op(*each(_MIXING, torch, F), *[n for n in _MIXING.split() if hasattr(Tensor, n)])
@register_op(nn.Softmax, nn.LogSoftmax, nn.Softmin, F.gumbel_softmax)
def mixing(op: Op) -> Any:
    """Mixes along one dimension, which can therefore not grow; the others pass."""
    fallback = {"normalize": 1, "sort": -1, "argsort": -1}.get(op.name)
    position = 2 if op.name in ("normalize", "roll") else 1
    name = "dims" if op.name in ("flip", "roll") else "dim"
    dims = op.argument(position, name, fallback)
    if dims is None:
        raise Unknown("mixes along a dimension that it leaves open")
    for dim in dims if isinstance(dims, (tuple, list)) else [dims]:
        op.fix(op.x.axes[dimension(op, op.x, dim)], "mixes its channels")
    return pytree.tree_map_only(Tensor, lambda _: op.x, op.example)


@register_op(nn.Softmax2d, nn.LocalResponseNorm, F.local_response_norm)
def channel_mixing(op: Op) -> Any:
    """Mixes along the channels, which can therefore not grow; the others pass."""
    op.fix(op.x.axes[-3 if op.name == "Softmax2d" else 1], "mixes its channels")
    return op.x


@register_op(nn.LayerNorm, F.layer_norm, nn.RMSNorm, F.rms_norm)
def trailing_norm(op: Op) -> Any:
    """Normalises over the last dimensions, whose statistics would change with their width."""
    shape = op.argument(1, "normalized_shape")
    if not isinstance(shape, (tuple, list)):
        raise Unknown("normalises over a shape that follows a width")
    for axis in op.x.axes[len(op.x.axes) - len(shape) :]:
        op.fix(axis, "takes its statistics over all its channels")
    return op.x
