"""The part of a grown layer's weight gradient that its trained blocks need."""

from __future__ import annotations

from splitgrow.layers.composition import Composition
from splitgrow.layers.partial_gradients import (
    Gradients,
    Side,
    diagonal_gradients_of,
    gradients_of,
)


def weight_gradients_of(composition: Composition, blocks: tuple[int, ...]) -> Gradients:
    """The gradients to compute for a layer's weight.

    Args:
        composition: The layer.
        blocks: Those whose weights train.
    """
    entry, original = composition.layer_type, composition.original
    axes, shape = entry.tensors(original)["weight"], composition.shape("weight")
    places = {block: composition.places(block, "weight") for block in blocks}
    if entry.diagonal(original):
        edits = {composition.blocks[block].edit for block in blocks}
        outs = composition.outs.spans(edits.__contains__)
        ins = composition.ins.spans(edits.__contains__)
        (dim,) = axes
        return diagonal_gradients_of(dim, shape[dim], places, (outs, ins))
    sides = {along.side: Side(dim, along.sections, shape[dim]) for dim, along in axes.items()}
    helpers = {b: p for b, p in places.items() if composition.blocks[b].kind == "helper"}
    rows = {b: p for b, p in places.items() if b not in helpers}
    return gradients_of(sides["out"], sides["in"], rows, helpers)
