"""Ops that pick positions, by slices, numbers, masks and tensors of indices, or write into them.

A dimension cannot grow if positions of it are picked by number. The others pass: picked rows are as
wide as before.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from splitgrow.analysis.channels.channel_axes import Axis, Size, constant
from splitgrow.analysis.ops.elementwise import broadcast
from splitgrow.analysis.ops.facts import FRESH, MOVED
from splitgrow.analysis.ops.joins import dimension, fix_position, stretch, with_axis
from splitgrow.analysis.ops.op import NO_DIM, Op, Origin, Shaped, Unknown, as_size
from splitgrow.analysis.ops.registry import entry

_PICKED = FRESH.but(zero=True)

_BY_NUMBER = "picks positions of it by number"


@entry("operator.getitem", MOVED, follows_sizes=True)
def getitem(op: Op) -> Any:
    """Indexing in brackets: by numbers, slices, ellipses, masks, tensors of indices."""
    items = _items(op, op.args[1])
    ways = [
        masks
        for masks in _interpretations(op, op.x, items)
        if _dims(op.x, items, masks) == op.example.dim()
    ]
    if len(ways) != 1:
        raise Unknown("picks positions by tensors that could be masks or indices")
    region = _region(op, op.x, items, ways[0])
    shape = op.example.shape
    picked = (constant(int(size)) for size in shape)
    axes = tuple(axis or own for axis, own in zip(region, picked, strict=True))
    origin = _origin_of_first(op.x, items, len(axes))
    if origin is not None:
        op.fix(op.x.axes[0], _BY_NUMBER)
    return Shaped(axes, origin)


def _origin_of_first(source: Shaped, items: Sequence[Any], dims: int) -> Origin | None:
    """The dimensions of a module's tensor in what is picked along its first one, as its experts."""
    known, item = source.origin, items[0] if len(items) == 1 else slice(None)
    numbers = isinstance(item, Shaped) or (type(item) is int and item >= 0)
    if known is None or not numbers:
        return None
    rest = known.dims[1:]
    return Origin(known.path, (*(NO_DIM,) * (dims - len(rest)), *rest))


@entry("operator.setitem", follows_sizes=True)
def setitem(op: Op) -> Any:
    """The written value meets the positions that it goes to."""
    _write(op, op.x, _items(op, op.args[1]), op.args[2])


@entry("index_put", FRESH, follows_sizes=True)
def index_put(op: Op) -> Any:
    """The same, with a tensor of indices or None for each dimension."""
    indices = op.argument(1, "indices")
    if not isinstance(indices, (tuple, list)):
        raise Unknown("is given something else than a tuple of indices")
    items = [slice(None) if index is None else index for index in indices]
    _write(op, op.x, items, op.argument(2, "values"))
    return op.x


def _write(op: Op, target: Shaped, items: Sequence[Any], value: Any) -> None:
    """Ties the written value to the positions it goes to, for all meanings of the items."""
    op.plain(value)
    op.not_zero(target)
    ways = [_region(op, target, items, masks) for masks in _interpretations(op, target, items)]
    if not ways:
        raise Unknown("writes to positions that its tensors do not explain")
    if not isinstance(value, Shaped):
        return
    for dim in range(-len(value.axes), 0):
        met = [region[dim] if len(region) >= -dim else None for region in ways]
        for axis in met:
            if axis is None:
                op.fix(value.axes[dim], _BY_NUMBER)
            else:
                broadcast(op, [(axis,), (value.axes[dim],)])


def _items(op: Op, index: Any) -> list[Any]:
    """The items in brackets; a list of numbers is the tensor that torch makes of it.

    A list of one number picks the same as the slice around it.
    """
    items = list(index) if isinstance(index, tuple) else [index]
    lists = [item for item in items if isinstance(item, (list, range, Shaped))]
    for number, item in enumerate(items):
        if len(lists) == 1 and isinstance(item, list) and _is_one_number(item):
            items[number] = slice(item[0], item[0] + 1 or None)
        elif isinstance(item, (list, range)):
            if any(isinstance(entry, (list, tuple, Shaped)) for entry in item):
                raise Unknown("picks positions by a list of lists or tensors")
            op.plain(list(item))
            items[number] = Shaped((constant(len(item)),))
        elif isinstance(item, bool):
            raise Unknown("picks all or nothing by a truth value")
    return items


def _is_one_number(item: list[Any]) -> bool:
    return len(item) == 1 and type(item[0]) is int


def _interpretations(op: Op, source: Shaped, items: Sequence[Any]) -> Iterator[tuple[bool, ...]]:
    """The items that may be masks, as far as the shapes tell.

    A mask takes as many dimensions as it has and makes one; indices take one and make as many as
    they have. For one dimension that comes to the same.
    """
    tensors = [isinstance(item, Shaped) and len(item.axes) != 1 for item in items]
    for masks in itertools.product(*((False, True) if unsure else (False,) for unsure in tensors)):
        used = sum(map(_taken, items, masks))
        if used <= len(source.axes) and _masks_fit(op, source, items, masks):
            yield masks


def _taken(item: Any, mask: bool) -> int:  # noqa: FBT001
    """The number of dimensions of the source that an item takes."""
    if item is None or item is Ellipsis:
        return 0
    return len(item.axes) if mask else 1


def _made(items: Sequence[Any], masks: Sequence[bool]) -> int | None:
    """The number of dimensions that masks and indices make together; None without any."""
    pairs = zip(items, masks, strict=True)
    made = [1 if mask else len(item.axes) for item, mask in pairs if isinstance(item, Shaped)]
    return max(made) if made else None


def _dims(source: Shaped, items: Sequence[Any], masks: Sequence[bool]) -> int:
    """The number of dimensions of the result of the items."""
    used = sum(map(_taken, items, masks))
    kept = sum(item is None or isinstance(item, slice) for item in items)
    return len(source.axes) - used + kept + (_made(items, masks) or 0)


def _masks_fit(op: Op, source: Shaped, items: Sequence[Any], masks: Sequence[bool]) -> bool:
    """Whether every mask is as large as the dimensions that it takes."""
    at = 0
    for number, (item, mask) in enumerate(zip(items, masks, strict=True)):
        if item is Ellipsis:
            behind = sum(map(_taken, items[number + 1 :], masks[number + 1 :]))
            at = len(source.axes) - behind
        elif mask:
            taken = source.axes[at : at + len(item.axes)]
            if list(map(op.groups.length, taken)) != list(map(op.groups.length, item.axes)):
                return False
        at += _taken(item, mask)
    return True


def _region(
    op: Op, source: Shaped, items: Sequence[Any], masks: Sequence[bool]
) -> list[Axis | None]:
    """The axes of the picked region, with None for each that masks and indices make.

    Those stand at the place of the first of them if they are neighbours, and else in front.
    """
    rest = len(source.axes) - sum(map(_taken, items, masks))
    whole: tuple[Any, bool] = (slice(None), False)
    pairs = list(zip(items, masks, strict=True))
    at = next((i for i, item in enumerate(items) if item is Ellipsis), len(items))
    pairs[at : at + 1] = [whole] * rest
    axes: list[Axis | None] = []
    spots: list[int] = []
    remaining = list(source.axes)
    for item, mask in pairs:
        if item is None:
            axes.append(constant(1))
        elif isinstance(item, slice):
            axes.append(_sliced(op, remaining.pop(0), item))
        elif isinstance(item, Shaped):
            spots.append(len(axes))
            for axis in (*item.axes, *(remaining.pop(0) for _ in range(_taken(item, mask)))):
                op.fix(axis, _BY_NUMBER)
        else:
            fix_position(op, remaining.pop(0), as_size(item))
    at = spots[0] if len(set(spots)) == 1 else 0
    axes[at:at] = [None] * (_made(items, masks) or 0)
    return axes


def indexed(op: Op, dim: Any, *tensors: Shaped) -> int:
    """The dimension of which positions are picked by number, fixed in all of these tensors."""
    at = dimension(op, tensors[0], dim)
    for tensor in tensors:
        if len(tensor.axes) > at:
            op.fix(tensor.axes[at], _BY_NUMBER)
    return at


def tied_but(op: Op, at: int, one: Shaped, other: Shaped) -> None:
    """Ties two tensors in all dimensions but one; those that differ in size are fixed."""
    if len(one.axes) != len(other.axes):
        raise Unknown("is given tensors of different dimensions")
    for dim, (axis, theirs) in enumerate(zip(one.axes, other.axes, strict=True)):
        if dim == at:
            continue
        if op.groups.length(axis) != op.groups.length(theirs):
            op.fix(axis, "meets it with a tensor of another size")
            op.fix(theirs, "meets it with a tensor of another size")
        else:
            op.groups.tie(axis, theirs, op.reason("ties it to a size that does not change"))


@entry("index_select", _PICKED)
def index_select(op: Op) -> Any:
    """Positions of one dimension."""
    at = indexed(op, op.argument(1, "dim"), op.x)
    op.fix_all(_BY_NUMBER, but=[op.x])
    return with_axis(op.x, at, constant(int(op.example.shape[at])))


@entry("index_add index_copy index_reduce", _PICKED)
def index_add(op: Op) -> Any:
    """Positions of one dimension, into which those of another tensor go."""
    source = op.tensor(3, "source")
    at = indexed(op, op.argument(1, "dim"), op.x, source)
    op.fix_all(_BY_NUMBER, but=[op.x, source])
    tied_but(op, at, op.x, source)
    return op.x


@entry("index_fill", FRESH)
def index_fill(op: Op) -> Any:
    """Positions of one dimension, all made one value."""
    indexed(op, op.argument(1, "dim"), op.x)
    op.fix_all(_BY_NUMBER, but=[op.x])
    return op.x


@entry("gather", _PICKED)
def gather(op: Op) -> Any:
    """Positions picked for each line along a dimension: the indices must grow with the rest."""
    index = op.tensor(2, "index")
    at = indexed(op, op.argument(1, "dim"), op.x, index)
    tied_but(op, at, op.x, index)
    return index


@entry("scatter scatter_add scatter_reduce", FRESH)
def scatter(op: Op) -> Any:
    """The reverse of `gather`: writes to positions picked for each line."""
    index, source = op.tensor(2, "index"), op.argument(3, "src")
    both = [index, source] if isinstance(source, Shaped) and source.axes else [index]
    at = indexed(op, op.argument(1, "dim"), op.x, *both)
    for tensor in both:
        tied_but(op, at, op.x, tensor)
    return op.x


@entry("take_along_dim", _PICKED)
def take_along_dim(op: Op) -> Any:
    """As `gather`, with the other dimensions broadcast."""
    index = op.tensor(1, "indices")
    at = indexed(op, op.argument(2, "dim"), op.x, index)
    own = index.axes[at]
    axes = list(broadcast(op, [t.axes[:at] + t.axes[at + 1 :] for t in (op.x, index)]))
    return Shaped((*axes[:at], own, *axes[at:]))


@entry("select_scatter", _PICKED, follows_sizes=True)
def select_scatter(op: Op) -> Any:
    """One position of a dimension, written anew."""
    at = dimension(op, op.x, op.argument(2, "dim"))
    items = [slice(None)] * at + [op.argument(3, "index")]
    _write(op, op.x, items, op.argument(1, "src"))
    return op.x


@entry("slice_scatter", _PICKED, follows_sizes=True)
def slice_scatter(op: Op) -> Any:
    """A stretch of a dimension, written anew."""
    at = dimension(op, op.x, op.argument(2, "dim", 0))
    names = ("start", "end", "step")
    bounds = [op.argument(3 + number, name) for number, name in enumerate(names)]
    _write(op, op.x, [slice(None)] * at + [slice(*bounds)], op.argument(1, "src"))
    return op.x


def _sliced(op: Op, axis: Axis, item: slice) -> Axis:
    if item == slice(None):
        return axis
    whole = op.groups.size(axis)
    if item.step not in (None, 1):
        op.fix(axis, "takes every so many positions of it")
        start, stop, step = (op.plain(bound) for bound in (item.start, item.stop, item.step))
        return op.given_up([axis], len(range(whole.value)[slice(start, stop, step)]))
    bounds = []
    for bound, default in ((item.start, Size(0)), (item.stop, whole)):
        size = default if bound is None else as_size(bound)
        if size.value < -whole.value:
            op.fix(axis, "takes the last so many positions, which are all of them until it grows")
            size = Size(0)
        bounds.append(whole + size if size.value < 0 else size)
    return stretch(op, axis, *bounds)
