"""The costs of running a grown layer as one, against those of running its blocks apart."""

from __future__ import annotations

import math

from splitgrow.layers.composition import Composition

LARGEST_MERGED = 128 * 2**20
"""Bytes of a weight: "auto" assembles no larger one, since that takes as much memory again."""
_JOINING = (1.0, 4.0)
"""Elements of a weight that are copied in the time in which one of an output is joined: for a
product of matrices, and for a convolution over neighbours, which runs less well in small pieces."""
_PER_BLOCK = 20_000
"""Elements: the cost of the calls that one more block takes, in elements copied."""


def bytes_of(composition: Composition) -> int:
    """The size of the plain layer's largest tensor."""
    largest = 0
    for name in composition.layer_type.tensors(composition.original):
        value = composition.merging.value(composition.original, name)
        if value is not None:
            size = math.prod(composition.shape(name)) * value.element_size()
            largest = max(largest, size)
    return largest


def rows_worth_copying(composition: Composition, copied: int) -> float:
    """The number of rows from which on copying so many elements is faster than joining outputs."""
    more = len(composition.modules) - 1
    weight = getattr(composition.original, "weight", None)
    over_neighbours = weight is not None and any(size > 1 for size in weight.shape[2:])
    joining = _JOINING[over_neighbours] * composition.sizes[1]
    return (copied / more - _PER_BLOCK) / joining if more and joining else 0.0
