"""Stretches of positions along a dimension, and the parts of tensors that they cover."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import TypeAlias

import torch
from torch import Tensor

Span: TypeAlias = tuple[int, int]
"""The first position of a stretch, and its length."""
Spans: TypeAlias = tuple[Span, ...]
"""Stretches in order of position, with a gap between each and the next."""
Index: TypeAlias = tuple[slice, ...]


def length_of(spans: Spans) -> int:
    """The number of positions."""
    return spans[0][1] if len(spans) == 1 else sum(length for _, length in spans)


def union(parts: Iterable[Spans]) -> Spans:
    """The positions of all of several, of which no two have one in common."""
    joined: list[Span] = []
    for start, length in sorted(span for spans in parts for span in spans):
        if joined and sum(joined[-1]) == start:
            first, before = joined.pop()
            joined.append((first, before + length))
        else:
            joined.append((start, length))
    return tuple(joined)


def shared(one: Spans, other: Spans) -> list[tuple[int, int, int]]:
    """The stretches that lie on both.

    For each its place among the one's positions, its place among the other's, and its length.
    """
    found = []
    before = 0
    for first, count in one:
        passed = 0
        for start, length in other:
            low, high = max(first, start), min(first + count, start + length)
            if low < high:
                found.append((before + low - first, passed + low - start, high - low))
            passed += length
        before += count
    return found


def repeated(spans: Spans, times: int, period: int) -> Spans:
    """The same positions in each of several equal sections that follow each other."""
    return union(tuple((start + k * period, n) for start, n in spans) for k in range(times))


def laid_along(values: Tensor, dim: int, dims: int) -> Tensor:
    """Values laid along one dimension, to be broadcast to tensors of `dims` dimensions."""
    return values.reshape([-1 if each == dim else 1 for each in range(dims)])


def take(tensor: Tensor, dim: int, spans: Spans) -> Tensor:
    """The part of a tensor at these positions: where possible the tensor itself or a view."""
    if spans == ((0, tensor.shape[dim]),):
        return tensor
    return part_of(tensor, dim, spans)


def part_of(tensor: Tensor, dim: int, spans: Spans) -> Tensor:
    """As `take`, of a tensor that has other positions as well; its sizes are not checked."""
    parts = [tensor.narrow(dim, start, length) for start, length in spans or ((0, 0),)]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def put(tensor: Tensor, dim: int, spans: Spans, part: Tensor) -> None:
    """Sets the values of a tensor at these positions, those that `take` returns."""
    for there, own in regions({dim: spans}, tensor.dim()):
        tensor[there] = part[own]


def cut_out(
    whole: Tensor, rectangles: Sequence[tuple[Index, Index]], shape: Sequence[int]
) -> Tensor:
    """The contiguous tensor of a shape whose rectangles, as in `regions`, lie in a larger one."""
    if len(rectangles) == 1:
        return whole[rectangles[0][0]].contiguous()
    part = whole.new_empty(shape)
    for there, own in rectangles:
        part[own] = whole[there]
    return part


def overlaps(
    one: Mapping[int, Spans], other: Mapping[int, Spans], dims: int
) -> Iterator[tuple[Index, Index]]:
    """The common rectangles of two tensors that lie in the same larger one.

    Args:
        one: For each dimension the stretches that the one lies on; all where there are none.
        other: The same of the other, for the same dimensions.
        dims: The number of dimensions.

    Yields:
        The rectangle in the one, and in the other.
    """
    choices = [[(slice(None), slice(None))] for _ in range(dims)]
    for dim, spans in one.items():
        stretches = shared(spans, other[dim])
        choices[dim] = [(slice(a, a + n), slice(b, b + n)) for a, b, n in stretches]
    for chosen in product(*choices):
        yield tuple(own for own, _ in chosen), tuple(own for _, own in chosen)


def regions(places: Mapping[int, Spans], dims: int) -> Iterator[tuple[Index, Index]]:
    """The rectangles of a tensor that lies scattered in a larger one.

    Args:
        places: For each dimension the stretches that it lies on; all where there are none.
        dims: The number of dimensions.

    Yields:
        The rectangle in the larger tensor, and in the tensor itself.
    """
    choices: list[list[tuple[slice, slice]]] = []
    for dim in range(dims):
        pieces, taken = [], 0
        for start, length in places.get(dim, ()) or ((0, 0),):  # an empty one is one rectangle
            pieces.append((slice(start, start + length), slice(taken, taken + length)))
            taken += length
        choices.append(pieces if dim in places else [(slice(None), slice(None))])
    for chosen in product(*choices):
        yield tuple(larger for larger, _ in chosen), tuple(own for _, own in chosen)
