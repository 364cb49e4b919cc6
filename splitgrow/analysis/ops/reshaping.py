"""Ops that move, merge and divide dimensions without touching values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from splitgrow.analysis.channels.channel_axes import Axis, Size, constant, scaled
from splitgrow.analysis.ops.elementwise import broadcast
from splitgrow.analysis.ops.facts import MOVED
from splitgrow.analysis.ops.joins import dimension, with_axis
from splitgrow.analysis.ops.op import Choice, Op, Shaped, Unknown, as_size, shaped_in
from splitgrow.analysis.ops.registry import entry
from splitgrow.analysis.ops.stretches import matched

_TURNED = MOVED.but(turns=True)


@entry("permute", _TURNED)
def permute(op: Op) -> Any:
    """Dimensions in another order."""
    dims = [dimension(op, op.x, dim) for dim in op.several(1, "dims")]
    if sorted(dims) != list(range(len(op.x.axes))):
        raise Unknown(f"is given the dimensions {dims!r}")
    return Shaped(tuple(op.x.axes[dim] for dim in dims))


@entry("transpose swapaxes swapdims", _TURNED)
def transpose(op: Op) -> Any:
    """Two dimensions exchanged."""
    names = ("axis0", "axis1") if "axis0" in op.kwargs or "axis1" in op.kwargs else ("dim0", "dim1")
    one, other = (dimension(op, op.x, op.argument(i + 1, names[i])) for i in (0, 1))
    axes = list(op.x.axes)
    axes[one], axes[other] = axes[other], axes[one]
    return Shaped(tuple(axes))


@entry("movedim moveaxis", _TURNED)
def movedim(op: Op) -> Any:
    """Dimensions moved to other places."""
    sources, targets = op.argument(1, "source"), op.argument(2, "destination")
    pairs = zip(_listed(sources), _listed(targets), strict=True)
    moved = {dimension(op, op.x, t): dimension(op, op.x, s) for s, t in pairs}
    others = iter(d for d in range(len(op.x.axes)) if d not in moved.values())
    order = [moved[d] if d in moved else next(others) for d in range(len(op.x.axes))]
    return Shaped(tuple(op.x.axes[d] for d in order))


@entry("t", _TURNED)
def matrix_transpose(op: Op) -> Any:
    """A matrix with rows and columns exchanged."""
    return Shaped(op.x.axes[::-1])


@entry("adjoint", _TURNED)
def adjoint(op: Op) -> Any:
    """Matrices with rows and columns exchanged, and complex numbers conjugate."""
    return Shaped((*op.x.axes[:-2], *op.x.axes[-2:][::-1]))


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (tuple, list)) else (value,)


@entry("squeeze", MOVED)
def squeeze(op: Op) -> Any:
    """Without dimensions of size one, which therefore cannot grow."""
    dims = op.several(1, "dim")
    ndim = len(op.x.axes)
    everywhere = op.argument(1, "dim") is None
    chosen = range(ndim) if everywhere else [dimension(op, op.x, d) for d in dims]
    axes = []
    for index, axis in enumerate(op.x.axes):
        if index in chosen and op.groups.length(axis) == 1:
            op.fix(axis, "drops it because it is of size one")
        else:
            if index in chosen and not everywhere:
                op.fix(axis, "would drop it if it were of size one")
            axes.append(axis)
    return Shaped(tuple(axes))


@entry("unsqueeze", MOVED)
def unsqueeze(op: Op) -> Any:
    """A new dimension of size one."""
    dim = dimension(op, op.x, op.argument(1, "dim"), extra=1)
    return Shaped((*op.x.axes[:dim], constant(1), *op.x.axes[dim:]))


@entry("expand broadcast_to", MOVED, follows_sizes=True)
def expand(op: Op) -> Any:
    """Dimensions of size one spread out; those of other sizes keep theirs."""
    return spread(op, op.x, [as_size(number) for number in op.several(1, "size")])


@entry("expand_as", MOVED)
def expand_as(op: Op) -> Any:
    """Dimensions of size one spread out to the shape of another tensor."""
    return spread(op, op.x, [op.groups.size(axis) for axis in op.tensor(1, "other").axes])


@entry("broadcast_tensors", MOVED.but(carry=None))
def broadcast_tensors(op: Op) -> Any:
    """Tensors spread out to their common shape."""
    given = op.args[0] if len(op.args) == 1 and isinstance(op.args[0], (tuple, list)) else op.args
    tensors = list(shaped_in(given))
    sizes = [op.groups.size(axis) for axis in broadcast(op, [t.axes for t in tensors])]
    return tuple(spread(op, tensor, sizes) for tensor in tensors)


def spread(op: Op, tensor: Shaped, sizes: Sequence[Size]) -> Shaped:
    """A tensor's dimensions of size one, and new ones before the first, spread to sizes.

    A tensor that is alike along a dimension may be so along one that grows.
    """
    axes = []
    missing = len(sizes) - len(tensor.axes)
    for index, size in enumerate(sizes):
        axis = tensor.axes[index - missing] if index >= missing else constant(1)
        if op.groups.length(axis) == 1 and size.value not in (1, -1):
            op.fix(axis, "spreads its one channel")
            axis = spread_axis(op, axis, size)
        elif size.value != -1 and not op.groups.equate(
            axis, size, op.reason("spreads it to a size that does not change")
        ):
            _refuse_literal(op, axis, size)
        axes.append(axis)
    return Shaped(tuple(axes))


def spread_axis(op: Op, axis: Axis, size: Size) -> Axis:
    """The axis of a tensor that is alike along it; its length is a number."""
    wide = op.groups.axis_of(size) if op.groups.slope(size) else None
    if wide is None:
        op.groups.fix_size(size, op.reason("makes a tensor of a size taken from the width"))
        return op.given_up([axis], size.value)
    op.not_zero(Shaped((wide,)))
    return wide


@entry("repeat tile", MOVED.but(fresh=True), follows_sizes=True)
def repeat(op: Op) -> Any:
    """Dimensions laid out several times, one whole copy behind the other."""
    given = op.several(1, "repeats" if op.name == "repeat" else "dims")
    counts = [as_size(number) for number in given]
    counts = [Size(1)] * (len(op.x.axes) - len(counts)) + counts
    missing = len(counts) - len(op.x.axes)
    axes = (constant(1),) * missing + op.x.axes
    pairs = zip(counts, axes, strict=True)
    return Shaped(tuple(merge(op, (_times(op, count), axis)) for count, axis in pairs))


def _times(op: Op, count: Size) -> Axis:
    """The axis of the repetitions of a dimension; their number may be one that a module holds."""
    if op.groups.is_free(count):
        return spread_axis(op, constant(1), count)
    op.plain(count)
    return constant(count.value)


@entry("repeat_interleave", MOVED.but(fresh=True), follows_sizes=True)
def repeat_interleave(op: Op) -> Any:
    """Each position of a dimension several times in a row."""
    count, dim = op.argument(1, "repeats"), op.argument(2, "dim")
    if not isinstance(count, (int, Size)) or isinstance(count, bool) or dim is None:
        raise Unknown("repeats each position by a number of its own")
    dim = dimension(op, op.x, dim)
    merged = merge(op, (op.x.axes[dim], _times(op, as_size(count))))
    return with_axis(op.x, dim, merged)


@entry("view_as_complex", MOVED)
def view_as_complex(op: Op) -> Any:
    """Pairs along the last dimension, one complex number each."""
    op.fix(op.x.axes[-1], "takes pairs of it as complex numbers")
    return Shaped(op.x.axes[:-1])


@entry("view_as_real", MOVED)
def view_as_real(op: Op) -> Any:
    """Complex numbers as pairs along a new last dimension."""
    return Shaped((*op.x.axes, constant(2)))


def _fix_space(op: Op) -> None:
    for axis in op.x.axes[-2:]:
        op.fix(axis, "works along it as if it were space")


@entry("pixel_shuffle", MOVED)
def pixel_shuffle(op: Op) -> Any:
    """(..., C * r * r, H, W) to (..., C, H * r, W * r): channels come in bundles of r * r."""
    factor = op.argument(1, "upscale_factor")
    _fix_space(op)
    bundle = op.groups.bundle(op.x.axes[-3], factor**2, op.reason("takes channels in bundles"))
    space = tuple(constant(int(size)) for size in op.example.shape[-2:])
    return Shaped((*op.x.axes[:-3], bundle, *space))


@entry("pixel_unshuffle", MOVED)
def pixel_unshuffle(op: Op) -> Any:
    """(..., C, H * r, W * r) to (..., C * r * r, H, W): each channel becomes r * r of them."""
    factor = op.argument(1, "downscale_factor")
    _fix_space(op)
    space = tuple(constant(int(size)) for size in op.example.shape[-2:])
    return Shaped((*op.x.axes[:-3], scaled(op.x.axes[-3], factor**2), *space))


@entry("channel_shuffle", MOVED)
def channel_shuffle(op: Op) -> Any:
    """(N, g * C, ...) with the channels of g sections interleaved."""
    groups = op.argument(1, "groups")
    section = op.groups.sections(op.x.axes[1], groups, op.reason("interleaves its sections"))
    return with_axis(op.x, 1, scaled(section, groups))


@entry("flatten ravel", _TURNED)
def flatten(op: Op) -> Any:
    """Several dimensions as one."""
    start = 1 if op.module is not None else 0
    start = dimension(op, op.x, op.argument(1, "start_dim", start))
    end = dimension(op, op.x, op.argument(2, "end_dim", -1))
    merged = merge(op, op.x.axes[start : end + 1])
    return Shaped((*op.x.axes[:start], merged, *op.x.axes[end + 1 :]))


@entry("unflatten", _TURNED, follows_sizes=True)
def unflatten(op: Op) -> Any:
    """One dimension as several."""
    dim = dimension(op, op.x, op.argument(1, "dim"))
    name = "unflattened_size" if op.module is not None else "sizes"
    sizes = list(_listed(op.argument(2, name)))
    return Shaped((*op.x.axes[:dim], *divide(op, op.x.axes[dim], sizes), *op.x.axes[dim + 1 :]))


@entry("reshape view", _TURNED, follows_sizes=True)
def reshape(op: Op) -> Any:
    """Dimensions merged and divided, where the new shape follows the widths as they grow."""
    numbers = list(op.several(1, "shape"))
    if not numbers and op.example.dim():
        raise Unknown("is given something else than a shape")
    return reshaped(op, numbers)


@entry("view_as reshape_as", _TURNED)
def reshape_as(op: Op) -> Any:
    """Dimensions merged and divided to the shape of another tensor."""
    other = op.tensor(1, "other")
    return reshaped(op, [op.groups.size(axis) for axis in other.axes])


def reshaped(op: Op, numbers: Sequence[Any]) -> Shaped:
    """The tensor in another shape of as many elements."""
    sizes = [as_size(number) for number in numbers]
    old = [op.groups.length(axis) for axis in op.x.axes]
    new = [int(size) for size in op.example.shape]
    if 0 in old:
        op.fix_all("has no elements that could tell how it is reshaped")
        return Shaped(tuple(op.given_up(op.x.axes, size) for size in new))
    axes: list[Axis] = []
    for before, after in matched(old, new, lambda a, b: _cost(op, op.x.axes[a], sizes[b])):
        merged = merge(op, op.x.axes[before])
        axes.extend(divide(op, merged, sizes[after], new[after]))
    return Shaped(tuple(op.groups.resolve(axis) for axis in axes))


def _cost(op: Op, axes: Sequence[Axis], sizes: Sequence[Size]) -> float:
    """A measure of the widths that could not grow if a stretch of axes became these sizes."""
    growing = [axis for axis in axes if op.groups.can_grow(axis)]
    moving = [size for size in sizes if op.groups.slope(size)]
    measured = [size for size in moving if not op.groups.is_free(size)]
    if not growing:
        return len(measured) + 0.25 * len(moving)
    if len(growing) > 1 or len(measured) > 1:
        return len(growing) + len(measured)
    if not measured:
        return 0 if moving or any(size.value == -1 for size in sizes) else 1
    (axis,), (size,) = growing, measured
    own = op.groups.slope(op.groups.size(axis)).keys() & op.groups.slope(size).keys()
    return 0 if own else 0.5


def merge(op: Op, axes: tuple[Axis, ...]) -> Axis:
    """Several dimensions as one: outer ones repeat the whole axis, inner ones each position."""
    if len(axes) == 1:
        return axes[0]
    growing = [index for index, axis in enumerate(axes) if op.groups.can_grow(axis)]
    if len(growing) > 1:
        # A number that measures nothing else stays for the sake of a width.
        measuring = [i for i in growing if not op.groups.is_free(op.groups.size(axes[i]))]
        one = measuring if len(measuring) == 1 else []
        for index in growing:
            if index not in one:
                op.fix(axes[index], "merges it with another dimension that could grow")
        growing = [index for index in one if op.groups.can_grow(axes[index])]
    if len(growing) != 1:
        return op.given_up(axes, math.prod(op.groups.length(axis) for axis in axes))
    (index,) = growing
    outer = math.prod(op.groups.length(axis) for axis in axes[:index])
    inner = math.prod(op.groups.length(axis) for axis in axes[index + 1 :])
    return scaled(axes[index], inner) * outer


def divide(
    op: Op, axis: Axis, numbers: Sequence[Any], shape: Sequence[int] | None = None
) -> list[Axis]:
    """One dimension as several of the given sizes; one of them may grow with it."""
    sizes = [as_size(number) for number in numbers]
    if shape is None:
        known = math.prod(size.value for size in sizes if size.value != -1)
        left = op.groups.length(axis) // max(known, 1)
        shape = [left if size.value == -1 else size.value for size in sizes]
    if not op.groups.can_grow(axis):
        for size in sizes:
            op.groups.fix_size(size, op.reason("reshapes by a width"))
        return [axis] if len(shape) == 1 else [op.given_up([axis], size) for size in shape]
    candidates = _candidates(op, sizes)
    if op.x.origin is not None:  # dimensions of size one of a module's tensor are no width
        candidates = [i for i in candidates if shape[i] != 1] or candidates
    if not candidates:
        _refuse_literal(op, axis, *sizes)
        return [op.given_up([axis], length) for length in shape]
    index = candidates[op.preferred.get(op.place, 0) % len(candidates)]
    for other in (*sizes[:index], *sizes[index + 1 :]):
        op.groups.fix_size(other, op.reason("divides it by this number"))
    outer, inner = math.prod(shape[:index]), math.prod(shape[index + 1 :])
    reason = op.reason("divides it")
    section = op.groups.sections(axis, outer, reason)
    part = op.groups.bundle(section, inner, reason)
    if len(candidates) > 1:
        rest = [i for i, at in enumerate(candidates) if sizes[at].value == -1]
        op.choices.append(Choice(op.place, len(candidates), rest[0] if rest else None, part))
    if sizes[index].value != -1 and not _equate(op, part, sizes[index], reason):
        _refuse_literal(op, axis, *sizes)
    part = op.groups.resolve(part)
    return [part if i == index else constant(length) for i, length in enumerate(shape)]


def _equate(op: Op, axis: Axis, size: Size, reason: str) -> bool:
    """Makes the length of an axis follow a number, or a number and a rest, such as heads + 2.

    The rest is taken to lie behind: queries lie before the one key and value that they share.
    """
    if op.groups.equate(axis, size, reason):
        return True
    slope = op.groups.slope(size)
    moving = Size(sum(int(rise) * op.groups.width(group) for group, rise in slope.items()), slope)
    if not 0 < moving.value < size.value == op.groups.length(axis):
        return False
    before, rest = op.groups.cut(axis, moving.value, reason)
    op.groups.fix(rest, reason)
    return op.groups.equate(before, moving, reason)


def _candidates(op: Op, sizes: Sequence[Size]) -> list[int]:
    """The sizes that could grow with the dimension that they divide, the outermost first.

    A size that measures a width does. Otherwise it is a size that no axis has yet: the number in a
    module's attribute, such as its heads, or the -1 that takes the rest.
    """
    moving = [i for i, size in enumerate(sizes) if op.groups.slope(size)]
    measured = [i for i in moving if not op.groups.is_free(sizes[i])]
    if measured:
        return measured if len(measured) == 1 else []
    return [i for i, size in enumerate(sizes) if i in moving or size.value == -1]


def _refuse_literal(op: Op, axis: Axis, *sizes: Size) -> None:
    """Fixes an axis whose size is written down in the user's source."""
    if not sizes:
        op.fix(axis, "drops it because it is of size one")
        return
    written = ", ".join(str(size.value) for size in sizes)
    op.fix(
        axis,
        f"writes its size down ({written}); let it follow the tensor instead: `flatten`, -1, or "
        f"`x.size(...)`",
    )
    for size in sizes:
        op.groups.fix_size(size, op.reason("reshapes by a width"))
