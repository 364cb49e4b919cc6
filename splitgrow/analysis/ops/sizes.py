"""Numbers taken from shapes and attributes: computed with, compared, made tensors of."""

from __future__ import annotations

import math
import operator
from fractions import Fraction
from typing import Any

from splitgrow.analysis.channels.channel_axes import Axis, Run, Size, constant
from splitgrow.analysis.channels.tracked_int import plain_value
from splitgrow.analysis.ops.facts import FRESH, UNKNOWN
from splitgrow.analysis.ops.op import Choice, Op, Shaped, Unknown, as_size
from splitgrow.analysis.ops.registry import entry


@entry("operator.add operator.sub operator.mul operator.floordiv", follows_sizes=True)
@entry("operator.neg operator.lshift operator.rshift", follows_sizes=True)
def arithmetic(op: Op) -> Any:
    """Sums, products and quotients of numbers, as far as they change evenly with growth."""
    answer = _whole(op)
    return answer if answer is not None else used(op)


def _whole(op: Op) -> Size | None:
    """A whole number that changes evenly with its operands, or None."""
    one = as_size(op.args[0])
    if op.target is operator.neg:
        return one.scaled(Fraction(-1))
    other = as_size(op.args[1])
    if op.target is operator.add:
        return one + other
    if op.target is operator.sub:
        return one + other.scaled(Fraction(-1))
    if op.target is operator.mul and op.groups.slope(other):
        one, other = other, one
    if op.groups.slope(one) and op.groups.slope(other):
        if op.target is operator.mul:
            return _product(op, one, other)
        each = _quotient(op, one, other) if op.target is operator.floordiv else None
        if each is not None or not op.groups.is_free(other):
            return each
    elif op.groups.slope(other):
        return None
    try:
        return _in_steps(op, _settled(op, one, other).scaled(_factor(op.target, other.value)))
    except ArithmeticError:
        return None


def _in_steps(op: Op, share: Size) -> Size:
    """A share of a number that measures nothing yet, which grows in steps that divide evenly."""
    if not op.groups.is_free(share):
        return share
    for group, rise in op.groups.slope(share).items():
        if op.groups.width(group) % rise.denominator == 0:
            op.groups.bundle((Run(group, 1),), rise.denominator, op.reason("takes a share of it"))
    return Size(share.value, op.groups.slope(share))


def _quotient(op: Op, whole: Size, count: Size) -> Size | None:
    """The quotient of two numbers that both move: it stays where they rise in its proportion."""
    rise = op.groups.slope(count)
    each, rest = divmod(whole.value, count.value)
    if not rest and op.groups.slope(whole) == {group: each * r for group, r in rise.items()}:
        return Size(each)
    return _share(op, whole, count) if op.groups.is_free(count) else None


def _product(op: Op, one: Size, other: Size) -> Size | None:
    """The product of two numbers that could both move, such as heads and their width: one stays.

    That is one that measures nothing yet. Of two such, the choice that lets more layers grow stays.
    """
    if op.groups.is_free(one) and op.groups.is_free(other):
        if op.preferred.get(op.place, 0) % 2:
            one, other = other, one
        axis = op.groups.axis_of(one)
        if axis is not None:
            op.choices.append(Choice(op.place, 2, None, axis))
    elif op.groups.is_free(one):
        one, other = other, one
    if not op.groups.is_free(other):
        return None
    return _settled(op, one, other).scaled(Fraction(other.value))


def _factor(target: Any, number: int) -> Fraction:
    """The factor by which an operator with a number on its right multiplies its left operand."""
    if target is operator.mul:
        return Fraction(number)
    if target is operator.floordiv:
        return Fraction(1, number)
    return Fraction(2) ** (number if target is operator.lshift else -number)


def _share(op: Op, whole: Size, count: Size) -> Size | None:
    """The size of each of equal parts, whose number may follow the whole: heads of a width.

    The number may also stay while the parts grow; the choice that lets more layers grow is taken.
    """
    axis = op.groups.axis_of(whole)
    if axis is None or whole.value % count.value:
        return None
    follows = op.preferred.get(op.place, 0) % 2 == 0
    each = whole.value // count.value
    reason = op.reason("divides by it")
    part = op.groups.bundle(axis, each, reason) if follows else axis
    op.choices.append(Choice(op.place, 2, None, part))
    if not follows or not op.groups.equate(part, count, reason):
        return None
    return Size(each)


def _settled(op: Op, moving: Size, factor: Size) -> Size:
    """The moving number, once its factor is known to stay as it is."""
    op.groups.fix_size(factor, op.reason("multiplies or divides by it"))
    return moving


@entry("operator.mod", follows_sizes=True)
def remainder(op: Op) -> Any:
    """The remainder of a division: growth by whole multiples of the divisor keeps it."""
    size, divisor = as_size(op.args[0]), as_size(op.args[1])
    if divisor.value <= 0 or op.remainders is None:
        return used(op)
    op.remainders.keep(size, divisor, op.reason("looks at what is left when it is divided"))
    return op.example


@entry("operator.truediv operator.pow operator.and_ operator.or_", follows_sizes=True)
@entry("operator.xor operator.invert", UNKNOWN, plain_value, follows_sizes=True)
def used(op: Op) -> Any:
    """A number used as a mere value, which then cannot change."""
    for size in op.sizes():
        op.groups.fix_size(size, op.reason("computes with the width in a way that cannot grow"))
    return op.example


@entry("operator.eq operator.ne operator.lt", follows_sizes=True)
@entry("operator.le operator.gt operator.ge", follows_sizes=True)
def comparison(op: Op) -> Any:
    """A comparison, by which forward may decide, must have the same result after growth."""
    one, other = (as_size(number) for number in op.args)
    op.groups.settle(one, other, op.reason("compares it with a number that does not grow with it"))
    return op.example


@entry("operator.truth", follows_sizes=True)
def truth(op: Op) -> Any:
    """A width is never zero, and no growth makes it so."""
    size = as_size(op.args[0])
    if size.value <= 0 or any(change < 0 for change in op.groups.slope(size).values()):
        return used(op)
    return op.example


@entry("new_zeros new_ones new_empty new_full", FRESH, follows_sizes=True)
@entry("zeros ones full empty rand randn", FRESH, follows_sizes=True)
def uniform_creation(op: Op) -> Any:
    """A tensor that is alike everywhere may have any number of channels."""
    first = 1 if isinstance(op.args[:1] and op.args[0], Shaped) else 0
    given = op.kwargs.get("size", op.args[first:])
    if "full" in op.name:
        op.plain(op.args[first + 1 :])
        op.plain(op.kwargs.get("fill_value"))
        given = op.kwargs.get("size", op.args[first])
    if len(given) and isinstance(given[0], (tuple, list)):
        given = given[0]
    if len(given) != op.example.dim():
        return creation(op)
    axes = []
    for number in given:
        size = as_size(number)
        axes.append(_axis_of_length(op, size))
    return Shaped(tuple(axes))


def _axis_of_length(op: Op, size: Size) -> Axis:
    axis = op.groups.axis_of(size) if op.groups.slope(size) else constant(size.value)
    if axis is None:
        op.groups.fix_size(size, op.reason("makes a tensor of a size taken from the width"))
        return constant(size.value)
    return axis


@entry("arange linspace tensor eye new_tensor randint randperm", FRESH, follows_sizes=True)
def creation(op: Op) -> Any:
    """A tensor made of numbers: where those follow a width, the width cannot grow."""
    for size in op.sizes():
        op.groups.fix_size(size, op.reason("makes a tensor of a size taken from the width"))
    return op.constants("makes a tensor of its own")


@entry("Tensor.size", UNKNOWN.but(zero=True, turns=True), getattr, follows_sizes=True)
def attribute(op: Op) -> Any:
    """Shapes as numbers that follow growth; other attributes as they are."""
    name = "shape" if op.target == "size" else op.args[1]
    if name == "shape":
        sizes = tuple(op.groups.size(axis) for axis in op.x.axes)
        dim = op.plain(op.argument(1, "dim")) if op.target == "size" else None
        return sizes if dim is None else sizes[dim]
    if name in ("T", "mT", "H", "mH"):
        keep = len(op.x.axes) - 2 if name.startswith("m") else 0
        return Shaped(op.x.axes[:keep] + op.x.axes[keep:][::-1])
    if name in ("data", "real", "imag"):
        return op.x
    raise Unknown(f"reads `.{name}`, which splitgrow does not know")


@entry("numel nelement", follows_sizes=True)
def elements(op: Op) -> Any:
    """The number of elements, which follows the one dimension that can grow."""
    growing = [axis for axis in op.x.axes if op.groups.can_grow(axis)]
    if len(growing) > 1:
        op.fix_all("counts its positions")
    if len(growing) != 1:
        return op.example
    length = op.groups.length(growing[0])
    others = math.prod(op.groups.length(axis) for axis in op.x.axes if axis is not growing[0])
    return op.groups.size(growing[0]).scaled(Fraction(others)) if length else op.example


@entry("", UNKNOWN, len)
def counts(op: Op) -> Any:
    """The length as a plain number, which Python makes of it: fixed where it would change."""
    op.fix(op.x.axes[0], "counts its positions")
    return op.example
