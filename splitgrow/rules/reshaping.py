"""Ops that move, merge and divide dimensions without touching values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from splitgrow.axes import Axis, Size, constant, scaled
from splitgrow.rules.joins import dimension, with_axis
from splitgrow.rules.registry import Op, Shaped, Unknown, as_size, register_op


@register_op(torch.permute, "permute", keeps_zeros=True)
def permute(op: Op) -> Any:
    """Dimensions in another order."""
    dims = _several(op, "dims")
    if sorted(d % len(op.x.axes) for d in dims) != list(range(len(op.x.axes))):
        raise Unknown(f"is given the dimensions {dims!r}")
    return Shaped(tuple(op.x.axes[dim] for dim in dims))


@register_op(
    torch.transpose,
    "transpose",
    torch.swapaxes,
    "swapaxes",
    "swapdims",
    torch.swapdims,
    keeps_zeros=True,
)
def transpose(op: Op) -> Any:
    """Two dimensions exchanged."""
    names = ("axis0", "axis1") if "axes" in op.name else ("dim0", "dim1")
    one, other = (dimension(op, op.x, op.argument(i + 1, names[i])) for i in (0, 1))
    axes = list(op.x.axes)
    axes[one], axes[other] = axes[other], axes[one]
    return Shaped(tuple(axes))


@register_op(torch.movedim, "movedim", torch.moveaxis, "moveaxis", keeps_zeros=True)
def movedim(op: Op) -> Any:
    """Dimensions moved to other places."""
    sources, targets = op.argument(1, "source"), op.argument(2, "destination")
    pairs = zip(_listed(sources), _listed(targets), strict=True)
    moved = {dimension(op, op.x, t): dimension(op, op.x, s) for s, t in pairs}
    others = iter(d for d in range(len(op.x.axes)) if d not in moved.values())
    order = [moved[d] if d in moved else next(others) for d in range(len(op.x.axes))]
    return Shaped(tuple(op.x.axes[d] for d in order))


@register_op(torch.t, "t", keeps_zeros=True)
def matrix_transpose(op: Op) -> Any:
    """A matrix with rows and columns exchanged."""
    return Shaped(op.x.axes[::-1])


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


def _several(op: Op, name: str) -> Sequence[Any]:
    """Numbers given one by one or as one tuple."""
    if name in op.kwargs:
        return _listed(op.kwargs[name])
    first, *others = op.args[1:]
    return (first, *others) if others else _listed(first)


@register_op(torch.squeeze, "squeeze", keeps_zeros=True)
def squeeze(op: Op) -> Any:
    """Without dimensions of size one, which can therefore not grow."""
    dim = op.argument(1, "dim")
    ndim = len(op.x.axes)
    chosen = range(ndim) if dim is None else [dimension(op, op.x, d) for d in _listed(dim)]
    axes = []
    for index, axis in enumerate(op.x.axes):
        if index in chosen and op.groups.length(axis) == 1:
            op.fix(axis, "drops it because it is of size one")
        else:
            if index in chosen and dim is not None:
                op.fix(axis, "would drop it if it were of size one")
            axes.append(axis)
    return Shaped(tuple(axes))


@register_op(torch.unsqueeze, "unsqueeze", keeps_zeros=True)
def unsqueeze(op: Op) -> Any:
    """A new dimension of size one."""
    dim = dimension(op, op.x, op.argument(1, "dim"), extra=1)
    return Shaped((*op.x.axes[:dim], constant(1), *op.x.axes[dim:]))


@register_op(
    "expand", "expand_as", torch.broadcast_to, "broadcast_to", follows_sizes=True, keeps_zeros=True
)
def expand(op: Op) -> Any:
    """Dimensions of size one spread out; those of other sizes keep theirs."""
    if op.name == "expand_as":
        raise Unknown("spreads one tensor over another")
    sizes = _several(op, "size")
    axes = []
    missing = len(sizes) - len(op.x.axes)
    for index, number in enumerate(sizes):
        size = as_size(number)
        axis = op.x.axes[index - missing] if index >= missing else constant(1)
        if op.groups.length(axis) == 1 and size.value not in (1, -1):
            op.fix(axis, "spreads its one channel")
            op.groups.fix_size(size, op.reason("makes a tensor of a size taken from the width"))
            axis = op.given_up([axis], size.value)
        elif size.value != -1 and not op.groups.equate(
            axis, size, op.reason("spreads it to a size that does not change")
        ):
            _refuse_literal(op, axis, size)
        axes.append(axis)
    return Shaped(tuple(axes))


@register_op("repeat", torch.tile, "tile", follows_sizes=True, keeps_zeros=True)
def repeat(op: Op) -> Any:
    """Dimensions laid out several times, one whole copy behind the other."""
    counts = [as_size(n) for n in _several(op, "repeats" if op.name == "repeat" else "dims")]
    for count in counts:
        op.plain(count)
    if len(counts) < len(op.x.axes):
        raise Unknown("repeats by too few numbers")
    missing = len(counts) - len(op.x.axes)
    axes = (constant(1),) * missing + op.x.axes
    return Shaped(tuple(axis * count.value for axis, count in zip(axes, counts, strict=True)))


@register_op(torch.repeat_interleave, "repeat_interleave", keeps_zeros=True)
def repeat_interleave(op: Op) -> Any:
    """Each position of a dimension several times in a row."""
    count, dim = op.argument(1, "repeats"), op.argument(2, "dim")
    if not isinstance(count, int) or dim is None:
        raise Unknown("repeats each position by a number of its own")
    dim = dimension(op, op.x, dim)
    return with_axis(op.x, dim, scaled(op.x.axes[dim], count))


@register_op(nn.PixelShuffle, F.pixel_shuffle, keeps_zeros=True)
def pixel_shuffle(op: Op) -> Any:
    """(..., C * r * r, H, W) to (..., C, H * r, W * r): channels come in bundles of r * r."""
    factor = op.argument(1, "upscale_factor")
    bundle = op.groups.bundle(op.x.axes[-3], factor**2, op.reason("takes channels in bundles"))
    space = tuple(constant(int(size)) for size in op.example.shape[-2:])
    return Shaped((*op.x.axes[:-3], bundle, *space))


@register_op(nn.PixelUnshuffle, F.pixel_unshuffle, keeps_zeros=True)
def pixel_unshuffle(op: Op) -> Any:
    """(..., C, H * r, W * r) to (..., C * r * r, H, W): each channel becomes r * r of them."""
    factor = op.argument(1, "downscale_factor")
    space = tuple(constant(int(size)) for size in op.example.shape[-2:])
    return Shaped((*op.x.axes[:-3], scaled(op.x.axes[-3], factor**2), *space))


@register_op(nn.ChannelShuffle, F.channel_shuffle, keeps_zeros=True)
def channel_shuffle(op: Op) -> Any:
    """(N, g * C, ...) with the channels of g sections interleaved."""
    groups = op.argument(1, "groups")
    section = op.groups.sections(op.x.axes[1], groups, op.reason("interleaves its sections"))
    return with_axis(op.x, 1, scaled(section, groups))


@register_op(nn.Flatten, torch.flatten, "flatten", torch.ravel, "ravel", keeps_zeros=True)
def flatten(op: Op) -> Any:
    """Several dimensions as one."""
    start = 1 if op.module is not None else 0
    start = dimension(op, op.x, op.argument(1, "start_dim", start))
    end = dimension(op, op.x, op.argument(2, "end_dim", -1))
    merged = merge(op, op.x.axes[start : end + 1])
    return Shaped((*op.x.axes[:start], merged, *op.x.axes[end + 1 :]))


@register_op(nn.Unflatten, torch.unflatten, "unflatten", follows_sizes=True, keeps_zeros=True)
def unflatten(op: Op) -> Any:
    """One dimension as several."""
    dim = dimension(op, op.x, op.argument(1, "dim"))
    name = "unflattened_size" if op.module is not None else "sizes"
    sizes = list(_listed(op.argument(2, name)))
    return Shaped((*op.x.axes[:dim], *divide(op, op.x.axes[dim], sizes), *op.x.axes[dim + 1 :]))


@register_op(torch.reshape, "reshape", "view", follows_sizes=True, keeps_zeros=True)
def reshape(op: Op) -> Any:
    """Dimensions merged and divided, where the new shape follows the widths as they grow."""
    numbers = list(_several(op, "shape"))
    if len(numbers) == 1 and not isinstance(numbers[0], (int, Size)):
        raise Unknown(f"is given {numbers[0]!r} as a shape")
    shape = [int(size) for size in op.example.shape]
    axes: list[Axis] = []
    for old, new in _matched([op.groups.length(axis) for axis in op.x.axes], shape):
        merged = merge(op, op.x.axes[old])
        axes.extend(divide(op, merged, numbers[new], shape[new]))
    return Shaped(tuple(op.groups.resolve(axis) for axis in axes))


def _matched(old: list[int], new: list[int]) -> list[tuple[slice, slice]]:
    """The smallest stretches of old and of new dimensions that hold equally many elements."""
    pairs = []
    i = j = 0
    while i < len(old) or j < len(new):
        first_old, first_new = i, j
        ours, theirs = 1, 1
        while (ours != theirs or (first_old, first_new) == (i, j)) and (
            i < len(old) or j < len(new)
        ):
            if (ours <= theirs and i < len(old)) or j >= len(new):
                ours, i = ours * old[i], i + 1
            else:
                theirs, j = theirs * new[j], j + 1
            if ours == theirs and i > first_old and j > first_new:
                break
        pairs.append((slice(first_old, i), slice(first_new, j)))
    # Dimensions of size one at the end belong to the last stretch.
    while len(pairs) > 1 and (pairs[-1][0].start == len(old) or pairs[-1][1].start == len(new)):
        pairs.pop()
        pairs[-1] = (slice(pairs[-1][0].start, len(old)), slice(pairs[-1][1].start, len(new)))
    return pairs


def merge(op: Op, axes: tuple[Axis, ...]) -> Axis:
    """Several dimensions as one: outer ones repeat the whole axis, inner ones each position."""
    if len(axes) == 1:
        return axes[0]
    growing = [index for index, axis in enumerate(axes) if op.groups.can_grow(axis)]
    if len(growing) > 1:
        for index in growing:
            op.fix(axes[index], "merges it with another dimension that could grow")
    if len(growing) != 1:
        return op.given_up(axes, math.prod(op.groups.length(axis) for axis in axes))
    (index,) = growing
    outer = math.prod(op.groups.length(axis) for axis in axes[:index])
    inner = math.prod(op.groups.length(axis) for axis in axes[index + 1 :])
    return scaled(axes[index], inner) * outer


def divide(
    op: Op, axis: Axis, numbers: Sequence[Any], shape: Sequence[int] | None = None
) -> list[Axis]:
    """One dimension as several of the given sizes, of which one may grow with it."""
    sizes = [as_size(number) for number in numbers]
    if shape is None:
        known = math.prod(size.value for size in sizes if size.value != -1)
        left = op.groups.length(axis) // max(known, 1)
        shape = [left if size.value == -1 else size.value for size in sizes]
    if not op.groups.can_grow(axis):
        for size in sizes:
            op.groups.fix_size(size, op.reason("reshapes by a width"))
        return [axis] if len(shape) == 1 else [op.given_up([axis], size) for size in shape]
    index = _moving(op, sizes)
    if index is None:
        _refuse_literal(op, axis, *sizes)
        return [op.given_up([axis], length) for length in shape]
    for other in (*sizes[:index], *sizes[index + 1 :]):
        op.groups.fix_size(other, op.reason("divides it by this number"))
    outer, inner = math.prod(shape[:index]), math.prod(shape[index + 1 :])
    reason = op.reason("divides it")
    section = op.groups.sections(axis, outer, reason)
    part = op.groups.bundle(section, inner, reason)
    if sizes[index].value != -1 and not op.groups.equate(part, sizes[index], reason):
        _refuse_literal(op, axis, *sizes)
    return [part if i == index else constant(length) for i, length in enumerate(shape)]


def _moving(op: Op, sizes: Sequence[Size]) -> int | None:
    """Which of the sizes grows with the dimension that they divide.

    One that measures a width does. Otherwise it is one that nothing holds yet: the number in a
    module's attribute, such as its heads, or the -1 that takes what is left.
    """
    moving = [i for i, size in enumerate(sizes) if op.groups.slope(size)]
    measured = [i for i in moving if not op.groups.is_free(sizes[i])]
    if measured:
        return measured[0] if len(measured) == 1 else None
    free = [i for i, size in enumerate(sizes) if i in moving or size.value == -1]
    rest = [i for i in free if sizes[i].value == -1]
    if rest and rest[0] != free[0]:
        op.choices.append(op.place)
        return free[0] if op.outermost else rest[0]
    return free[0] if free else None


def _refuse_literal(op: Op, axis: Axis, *sizes: Size) -> None:
    """Fixes an axis whose size is written down in the user's source."""
    written = ", ".join(str(size.value) for size in sizes)
    op.fix(
        axis,
        f"writes its size down ({written}); let it follow the tensor instead: `flatten`, -1, or "
        f"`x.size(...)`",
    )
    for size in sizes:
        op.groups.fix_size(size, op.reason("reshapes by a width"))
