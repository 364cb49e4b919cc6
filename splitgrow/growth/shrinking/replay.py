"""Repeating a removal in a model that is rebuilt from its journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn

from splitgrow.errors import CheckpointError
from splitgrow.growth.edit_parts import Removal
from splitgrow.growth.recorded_layers import recorded_layer
from splitgrow.growth.shrinking.narrowing import narrowed, put_narrowed_, smaller_parameters
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.utils.rollback import Undo
from splitgrow.utils.same_parameters import in_the_place_of_


def remove_again_(
    modules: Mapping[str, nn.Module], removals: Iterable[Removal], undo: Undo
) -> None:
    """Takes channels out of layers, as an edit says.

    Args:
        modules: The model's modules by path.
        removals: The channels that each layer loses.
        undo: Takes it back.

    Raises:
        CheckpointError: If a layer has no such channels.
    """
    removals = list(removals)
    for removal in removals:
        _check(modules, removal)
    if len({removal.path for removal in removals}) < len(removals):
        raise CheckpointError("it takes channels out of a layer twice")
    with torch.inference_mode(mode=False), torch.no_grad():
        layers = [narrowed(modules, removal) for removal in removals]
        for layer in layers:
            if layer.plain_first:
                raise CheckpointError(f"it takes all first channels of `{layer.removal.name}`")
        smaller = [
            replace(joint, parameter=in_the_place_of_(joint.parameter, joint.older[0], undo))
            for joint in smaller_parameters(layers)
        ]
        put_narrowed_(modules, layers, smaller, undo)


def _check(modules: Mapping[str, nn.Module], removal: Removal) -> None:
    """Makes sure that a layer has the channels that go.

    Raises:
        CheckpointError: If it has not.
    """
    module, entry = recorded_layer(modules, removal)
    sizes = module.sizes() if isinstance(module, SplitLayer) else entry.sizes(module)
    for size, (before, after), spans in zip(
        sizes, (removal.in_width, removal.width), (removal.ins, removal.outs), strict=True
    ):
        ends = [0, *(end for start, count in spans for end in (start, start + count)), before]
        ordered = all(one <= other for one, other in pairwise(ends))
        gone = sum(count for _, count in spans)
        positive = all(count > 0 for _, count in spans)
        if size != before or not ordered or not positive or before - gone != after or after < 0:
            raise CheckpointError(
                f"`{removal.name}` loses channels that it does not have in this model"
            )
