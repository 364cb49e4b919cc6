"""Which outputs of a layer read which of its inputs, by its weights as they are now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from splitgrow.layers.types import Along, LayerType, Stock


@dataclass(frozen=True)
class Section:
    """A stretch of outputs and the stretch of inputs that these can read.

    Attributes:
        outs: The first output position.
        ins: The first input position.
        weight: (outputs, inputs, places in the kernel).
    """

    outs: int
    ins: int
    weight: Tensor


def has_weights(entry: LayerType, module: Stock) -> bool:
    """Whether outputs read inputs by weights that lie in tensors along both, and by nothing else.

    It is false of layers whose channels each go their own way.
    """
    if entry.merging.couples or entry.merging.computes_weight:
        return False
    along = [_sides(axes) for axes in entry.tensors(module).values()]
    return ["in", "out"] in along and ["in"] not in along


def _sides(axes: Mapping[int, Along]) -> list[str]:
    return sorted(along.side for along in axes.values())


def sections(entry: LayerType, module: Stock) -> Iterator[Section]:
    """The weights of a layer that has some, section by section.

    Example:
        >>> from torch import nn
        >>> from splitgrow.layers.types import layer_type_of
        >>> conv = nn.Conv2d(4, 6, 3, groups=2)
        >>> [(s.outs, s.ins, tuple(s.weight.shape)) for s in sections(layer_type_of(conv), conv)]
        [(0, 0, (3, 2, 9)), (3, 2, (3, 2, 9))]
    """
    ins, outs = entry.sizes(module)
    for name, axes in entry.tensors(module).items():
        if _sides(axes) != ["in", "out"]:
            continue
        dims = {along.side: dim for dim, along in axes.items()}
        counts = {along.side: along.sections for along in axes.values()}
        count = max(counts.values())
        tensor: Tensor = getattr(module, name).detach()
        weight = tensor.movedim((dims["out"], dims["in"]), (0, 1))
        weight = weight.reshape(*weight.shape[:2], -1)
        for index in range(count):
            part = weight
            for place, covers in enumerate((counts["out"], counts["in"])):
                if covers < count:  # it covers all sections, the other dimension only one
                    size = part.shape[place] // count
                    part = part.narrow(place, index * size, size)
            yield Section(index * (outs // count), index * (ins // count), part)


def readers(entry: LayerType, module: Stock) -> list[Section]:
    """For each section which outputs read which inputs: (outputs, inputs), true or false."""
    return [
        Section(section.outs, section.ins, (section.weight != 0).any(-1))
        for section in sections(entry, module)
    ]


def inputs_read(found: list[Section], outputs: Tensor, inputs: int) -> Tensor:
    """The inputs that any of some outputs reads.

    Args:
        found: What `readers` found.
        outputs: For each output whether it counts.
        inputs: The number of inputs.

    Returns:
        For each input whether it is read.
    """
    read = torch.zeros(inputs, dtype=torch.bool, device=outputs.device)
    for section in found:
        rows, columns = section.weight.shape
        chosen = outputs[section.outs : section.outs + rows].to(section.weight.device)
        by = section.weight[chosen].any(0).to(read.device)
        read[section.ins : section.ins + columns] |= by
    return read
