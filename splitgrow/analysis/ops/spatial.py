"""Ops that change space and leave channels alone."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from splitgrow.analysis.channels.channel_axes import constant, scaled
from splitgrow.analysis.ops.facts import FRESH, POOLED, SUMMED, first, same_side, with_zero
from splitgrow.analysis.ops.op import Op, Shaped, Unknown
from splitgrow.analysis.ops.registry import entry
from splitgrow.layers.shared_kernel import SHARED_KERNELS

_SPACE = FRESH.but(zero=True)


def _sized(*names: str) -> str:
    """The names for one, two and three dimensions of space."""
    return " ".join(name.replace("#", f"{dims}d") for name in names for dims in (1, 2, 3))


def _spatial_dims(op: Op) -> int:
    name = op.name.lower().rstrip("_")
    return next((dims for dims in (1, 2, 3) if f"{dims}d" in name), 0)


@entry(_sized("max_pool#", "max_pool#_with_indices"), POOLED.but(carry=first))
@entry(_sized("adaptive_max_pool#", "adaptive_max_pool#_with_indices"), POOLED.but(carry=first))
@entry(
    _sized("avg_pool#"), SUMMED.but(carry=same_side, linear=True)
)  # its divisor may be any number
@entry(_sized("adaptive_avg_pool#"), POOLED.but(carry=with_zero, linear=True))
@entry(_sized("lp_pool#"), SUMMED)
@entry(_sized("max_unpool#", "fractional_max_pool#", "fractional_max_pool#_with_indices"), _SPACE)
def pool(op: Op) -> Any:
    """Pools space; channels and batch pass."""
    return _space_changed(op, _spatial_dims(op))


@entry(
    _sized("nn.ReflectionPad#", "nn.ReplicationPad#", "nn.CircularPad#"), POOLED.but(linear=True)
)
@entry(_sized("nn.ZeroPad#"), SUMMED.but(carry=with_zero, linear=True))
@entry(_sized("nn.ConstantPad#"), FRESH)
def pad_module(op: Op) -> Any:
    """Pads space; channels and batch pass."""
    return _space_changed(op, _spatial_dims(op))


@entry(
    "F.interpolate upsample nn.UpsamplingNearest2d nn.UpsamplingBilinear2d", POOLED.but(linear=True)
)
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


@entry("F.grid_sample", FRESH)
def grid_sample(op: Op) -> Any:
    """Samples space at positions that another tensor gives."""
    op.fix_all("takes positions from it", but=[op.x])
    op.fix(op.x.axes[0], "samples each at positions of its own")
    return _sampled(op)


def _sampled(op: Op) -> Shaped:
    for axis in op.x.axes[2:]:
        op.fix(axis, "works along it as if it were space")
    return Shaped((*op.x.axes[:2], *(constant(int(size)) for size in op.example.shape[2:])))


@entry("F.pad", FRESH)
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


@entry("", _SPACE, *SHARED_KERNELS)
def shared_kernel(op: Op) -> Any:
    """Convolves space with the same kernels for every channel, which becomes one for each."""
    layer: Any = op.module
    axes = list(_space_changed(op, layer.dims).axes)
    axes[-1 - layer.dims] = scaled(axes[-1 - layer.dims], layer.multiplier)
    result = Shaped(tuple(axes))
    if layer.bias is not None:
        op.not_zero(result)
    return result


@entry("nn.Unfold F.unfold", _SPACE)
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


@entry("fold", _SPACE)
def fold(op: Op) -> Any:
    """(N, C * window, places) to (N, C, H, W): the positions of each channel's window, added up."""
    x = op.x
    if len(x.axes) != 3:
        raise Unknown("folds a tensor that is not three-dimensional")
    op.fix(x.axes[2], "works along it as if it were space")
    window = op.groups.length(x.axes[1]) // int(op.example.shape[1])
    channels = op.groups.bundle(x.axes[1], window, op.reason("takes channels in bundles"))
    return Shaped((x.axes[0], channels, *(constant(int(n)) for n in op.example.shape[2:])))
