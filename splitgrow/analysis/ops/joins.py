"""Ops that put tensors side by side or take them apart along a dimension."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from splitgrow.analysis.channels.channel_axes import Axis, Size, constant
from splitgrow.analysis.ops.facts import FRESH, MOVED, hull
from splitgrow.analysis.ops.op import Op, Shaped, Unknown, as_size
from splitgrow.analysis.ops.registry import entry

_JOINED = MOVED.but(fresh=True, carry=hull)


def dimension(op: Op, shaped: Shaped, dim: Any, *, extra: int = 0) -> int:
    """A dimension counted from the front, from one counted from either end."""
    ndim = len(shaped.axes) + extra
    dim = op.plain(dim)
    if not isinstance(dim, int) or not -ndim <= dim < ndim:
        raise Unknown(f"is given the dimension {dim!r}")
    return dim % ndim


def with_axis(shaped: Shaped, dim: int, *axes: Axis) -> Shaped:
    """The tensor with one of its axes replaced by others."""
    return Shaped(shaped.axes[:dim] + axes + shaped.axes[dim + 1 :])


def _tensors(op: Op) -> list[Shaped]:
    tensors = op.argument(0, "tensors")
    if not isinstance(tensors, Sequence) or not all(isinstance(t, Shaped) for t in tensors):
        raise Unknown("joins something else than a list of tensors")
    return list(tensors)


@entry("cat concat concatenate", _JOINED)
def cat(op: Op) -> Any:
    """The axes one after the other along one dimension; the others meet."""
    # Torch passes over empty vectors, beside tensors of any shape.
    tensors = [t for t in _tensors(op) if len(t.axes) != 1 or op.groups.length(t.axes[0])]
    if not tensors:
        return op.constants("joins nothing")
    return _joined(op, tensors, dimension(op, tensors[0], op.argument(1, "dim", 0)))


def _joined(op: Op, tensors: Sequence[Shaped], dim: int) -> Shaped:
    reason = op.reason("ties it to a size that does not change")
    axes = []
    for index, axis in enumerate(tensors[0].axes):
        for other in tensors[1:]:
            if index != dim:
                op.groups.tie(axis, other.axes[index], reason)
        axes.append(sum((t.axes[dim] for t in tensors), ()) if index == dim else axis)
    return Shaped(tuple(axes))


@entry("hstack vstack row_stack dstack column_stack", _JOINED)
def stack_along_one(op: Op) -> Any:
    """Columns, rows or layers side by side; tensors of fewer dimensions get some of size one."""
    name = "vstack" if op.name == "row_stack" else op.name
    tensors = [Shaped(_at_least(name, tensor.axes)) for tensor in _tensors(op)]
    first = len(tensors[0].axes) == 1
    return _joined(op, tensors, {"vstack": 0, "dstack": 2}.get(name, 0 if first else 1))


def _at_least(name: str, axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The axes of a stacked tensor, with those of size one that torch adds."""
    one = constant(1)
    if name == "hstack":
        return axes or (one,)
    if name == "column_stack":
        return axes if len(axes) > 1 else (*(axes or (one,)), one)
    if name == "vstack":
        return axes if len(axes) > 1 else (one, *(axes or (one,)))
    return (axes if len(axes) > 1 else (one, *(axes or (one,))))[:2] + (axes[2:] or (one,))


@entry("stack", _JOINED)
def stack(op: Op) -> Any:
    """A new dimension; all others meet."""
    first, *others = _tensors(op)
    dim = dimension(op, first, op.argument(1, "dim", 0), extra=1)
    for other in others:
        for mine, theirs in zip(first.axes, other.axes, strict=True):
            op.groups.tie(mine, theirs, op.reason("ties it to a size that does not change"))
    return Shaped((*first.axes[:dim], constant(1 + len(others)), *first.axes[dim:]))


@entry("chunk unsafe_chunk tensor_split", MOVED)
def chunk(op: Op) -> Any:
    """Equal parts, which grow alike."""
    dim = dimension(op, op.x, op.argument(2, "dim", 0))
    return _chunks(op, dim, op.argument(1, "chunks", op.argument(1, "sections")))


@entry("hsplit vsplit dsplit", MOVED)
def split_along_one(op: Op) -> Any:
    """Equal parts of the columns, the rows or the layers of a tensor."""
    dim = {"hsplit": 0 if len(op.x.axes) == 1 else 1, "vsplit": 0, "dsplit": 2}[op.name]
    return _chunks(op, dim, op.argument(1, "sections", op.argument(1, "indices")))


def _chunks(op: Op, dim: int, count: Any) -> Any:
    axis = op.x.axes[dim]
    if not isinstance(count, int):
        if isinstance(count, Shaped) or count is None:
            count = op.kwargs.get("tensor_indices_or_sections", op.kwargs.get("indices"))
        if not isinstance(count, (tuple, list)) or not all(isinstance(n, int) for n in count):
            raise Unknown("splits at positions that it cannot be told")
        op.fix(axis, "cuts it at positions that are written down")
        sizes = (int(part.shape[dim]) for part in op.example)
        return tuple(with_axis(op.x, dim, op.given_up([axis], size)) for size in sizes)
    if op.groups.length(axis) % count:
        op.fix(axis, f"cuts it into {count} unequal parts")
        sizes = (int(part.shape[dim]) for part in op.example)
        return tuple(with_axis(op.x, dim, op.given_up([axis], size)) for size in sizes)
    part = op.groups.sections(axis, count, op.reason(f"cuts it into {count} parts"))
    return tuple(with_axis(op.x, dim, part) for _ in range(count))


@entry("glu", FRESH.but(zero=True))
def glu(op: Op) -> Any:
    """Two halves that grow alike, one the gate of the other."""
    dim = dimension(op, op.x, op.argument(1, "dim", -1))
    half = op.groups.sections(op.x.axes[dim], 2, op.reason("cuts it into halves"))
    return with_axis(op.x, dim, half)


@entry("split split_with_sizes unsafe_split unsafe_split_with_sizes", MOVED, follows_sizes=True)
def split(op: Op) -> Any:
    """Parts of given sizes. Sizes that are written down stay, so axes of these sizes are fixed."""
    dim = dimension(op, op.x, op.argument(2, "dim", 0))
    sizes = op.argument(
        1, "split_size_or_sections", op.argument(1, "split_size", op.argument(1, "split_sizes"))
    )
    axis = op.x.axes[dim]
    length = op.groups.length(axis)
    if not isinstance(sizes, (tuple, list)):
        step = as_size(sizes)
        if step.value <= 0:
            raise Unknown("splits into parts of no size")
        if op.groups.slope(step) and length % step.value == 0:
            sizes = [step] * (length // step.value)
        else:
            op.plain(step)
            sizes = [min(step.value, length - start) for start in range(0, length, step.value)]
    return tuple(with_axis(op.x, dim, part) for part in parts(op, axis, sizes))


def parts(op: Op, axis: Axis, sizes: Sequence[Any]) -> list[Axis]:
    """An axis cut into consecutive parts of the given sizes, which must cover it at any width."""
    reason = op.reason("cuts it at a position that is written down")
    found = []
    rest = axis
    numbers = [as_size(number) for number in sizes]
    whole = sum(numbers, Size(0))
    slope = op.groups.slope(whole)
    if op.groups.is_free(whole) and set(slope.values()) == {1}:
        # Such as the width in [part, width - part].
        op.groups.equate(axis, Size(whole.value, slope), reason)
    for number in numbers:
        part, rest = op.groups.cut_at(rest, number, reason)
        found.append(part)
    return [op.groups.resolve(part) for part in found]


@entry("unbind", MOVED)
def unbind(op: Op) -> Any:
    """One tensor for each position of a dimension, which therefore cannot grow."""
    dim = dimension(op, op.x, op.argument(1, "dim", 0))
    op.fix(op.x.axes[dim], "takes its positions apart one by one")
    return tuple(with_axis(op.x, dim) for _ in op.example)


@entry("narrow", MOVED, follows_sizes=True)
def narrow(op: Op) -> Any:
    """A stretch of a dimension."""
    dim = dimension(op, op.x, op.argument(1, "dim"))
    start, length = as_size(op.argument(2, "start")), as_size(op.argument(3, "length"))
    if start.value < 0:
        raise Unknown("starts at a negative position")
    return with_axis(op.x, dim, stretch(op, op.x.axes[dim], start, start + length))


@entry("select", MOVED, follows_sizes=True)
def select(op: Op) -> Any:
    """One position of a dimension, which therefore cannot grow before it."""
    dim = dimension(op, op.x, op.argument(1, "dim"))
    fix_position(op, op.x.axes[dim], as_size(op.argument(2, "index")))
    return with_axis(op.x, dim)


def fix_position(op: Op, axis: Axis, index: Size) -> None:
    """Fixes an axis around one position that is picked out by number."""
    if index.value < 0:
        index = op.groups.size(axis) + index
    stretch(op, axis, index, index + Size(1))


def stretch(op: Op, axis: Axis, start: Size, stop: Size) -> Axis:
    """The part of an axis from one position to another; groups that would shift them are fixed."""
    reason = op.reason("cuts it at a position that is written down")
    length = op.groups.length(axis)
    if stop.value > length:
        # It takes the whole axis now, but would not if the axis outgrew the number.
        stop = Size(length)
    head, _ = op.groups.cut_at(axis, stop, reason)
    _, part = op.groups.cut_at(head, start, reason)
    return op.groups.resolve(part)
