"""The part of a weight's gradient that has to be computed, and each block's share of it.

Pure integers. Wherever its channels lie, the trained part of a grown layer is a set of whole
outputs (new blocks) and, for the other outputs, a set of inputs (helpers): two rectangles, however
often the layer has grown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from splitgrow.utils.spans import Index, Spans, length_of, overlaps, repeated, union

_WORTHWHILE = 0.8
"""Of the whole gradient: above this share, slicing costs more than it saves."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of a weight's two channel dimensions.

    Attributes:
        dim: The dimension of the weight.
        sections: The number of equal sections of the activations' channels in which it is repeated.
        length: The number of positions of one section.
    """

    dim: int
    sections: int
    length: int

    def channels(self, spans: Spans) -> Spans:
        """The positions in the activations."""
        return repeated(spans, self.sections, self.length)


@dataclass(frozen=True, slots=True)
class Strip:
    """A rectangle of the gradient that is computed at once.

    Attributes:
        outs: The channels of the output gradient that it uses.
        ins: The channels of the input.
        lengths: The lengths of the weight's dimensions in it; others stay as they are.
    """

    outs: Spans
    ins: Spans
    lengths: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class GradientShare:
    """Where a block's gradient is in a strip: rectangles there, and in the block's own."""

    strip: int
    rectangles: tuple[tuple[Index, Index], ...]


@dataclass(frozen=True, slots=True)
class Gradients:
    """The strips to compute, and the place in them of the gradient of each block that trains.

    Attributes:
        strips: At most two.
        shares: By block.
        worth: The computed share of the whole gradient.
    """

    strips: tuple[Strip, ...]
    shares: Mapping[int, GradientShare]
    worth: float


Places = Mapping[int, Spans]
"""For each dimension of a weight, the stretches on which a block lies."""


def gradients_of(
    out: Side, into: Side, rows: Mapping[int, Places], columns: Mapping[int, Places]
) -> Gradients:
    """The gradients to compute for a weight of two channel dimensions.

    Args:
        out: The dimension of the outputs.
        into: The dimension of the inputs.
        rows: The places of the original and of new blocks that train, by block.
        columns: The places of helpers that train, by block.
    """
    outs = union(places[out.dim] for places in rows.values())
    ins = union(places[into.dim] for places in columns.values())
    all_outs, all_ins = ((0, out.length),), ((0, into.length),)
    computed = length_of(outs) * into.length + out.length * length_of(ins)
    worth = computed / (out.length * into.length)
    if worth > _WORTHWHILE:
        outs, ins, worth = all_outs, (), 1.0
    rectangles: list[tuple[Spans, ...]] = [(outs, all_ins)] if outs else []
    # They overlap in a corner; a second one without it would take a copy of most of the outputs.
    rectangles += [(all_outs, ins)] if ins else []
    strips = tuple(
        Strip(
            out.channels(one),
            into.channels(other),
            ((out.dim, length_of(one)), (into.dim, length_of(other))),
        )
        for one, other in rectangles
    )
    order = {out.dim: 0, into.dim: 1}
    shares = {block: _share(order, places, rectangles, 0) for block, places in rows.items()}
    last = len(rectangles) - 1
    shares |= {block: _share(order, places, rectangles, last) for block, places in columns.items()}
    return Gradients(strips, shares, worth)


def diagonal_gradients_of(
    dim: int, length: int, places: Mapping[int, Places], channels: tuple[Spans, Spans]
) -> Gradients:
    """The gradients to compute where each output reads its own input only: one strip.

    Args:
        dim: The weight's only channel dimension.
        length: How long it is.
        places: The places of the blocks that train, by block.
        channels: The output and input channels of these blocks.
    """
    chosen = union(own[dim] for own in places.values())
    strips = (Strip(*channels, ((dim, length_of(chosen)),)),)
    shares = {block: _share({dim: 0}, own, [(chosen,)], 0) for block, own in places.items()}
    return Gradients(strips, shares, length_of(chosen) / length)


def _share(
    order: Mapping[int, int], places: Places, rectangles: Sequence[tuple[Spans, ...]], strip: int
) -> GradientShare:
    """The place of a block in one of the strips.

    Args:
        order: For each dimension of the weight, its place in a rectangle.
        places: The block's.
        rectangles: The strips, in the weight's own positions.
        strip: The strip's index.
    """
    own = {dim: rectangles[strip][place] for dim, place in order.items()}
    return GradientShare(strip, tuple(overlaps(own, places, 1 + max(order))))
