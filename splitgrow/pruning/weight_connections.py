"""Connections by weights: the inputs that each output of a layer reads, by its present weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from splitgrow.layers.types import Along, LayerType, Stock, TensorAxes


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
    """Whether outputs read inputs only by weights in tensors that run along both.

    It is false for layers whose channels are independent of each other.
    """
    if entry.merging.couples or entry.merging.computes_weight:
        return False
    along = [_sides(axes) for axes in entry.tensors(module).values()]
    return ["in", "out"] in along and ["in"] not in along


def _sides(axes: Mapping[int, Along]) -> list[str]:
    return sorted(along.side for along in axes.values())


def sections(entry: LayerType, module: Stock) -> Iterator[Section]:
    """The weights of a layer with connections, section by section.

    Example:
        >>> from torch import nn
        >>> from splitgrow.layers.types import layer_type_of
        >>> conv = nn.Conv2d(4, 6, 3, groups=2)
        >>> [(s.outs, s.ins, tuple(s.weight.shape)) for s in sections(layer_type_of(conv), conv)]
        [(0, 0, (3, 2, 9)), (3, 2, (3, 2, 9))]
    """
    for name, axes in entry.tensors(module).items():
        if _sides(axes) == ["in", "out"]:
            yield from sections_of(getattr(module, name), axes, entry.sizes(module))


def sections_of(tensor: Tensor, axes: TensorAxes, sizes: tuple[int, int]) -> Iterator[Section]:
    """The weights in a tensor that runs along inputs and outputs.

    Args:
        tensor: The tensor.
        axes: The meaning of its dimensions.
        sizes: The layer's numbers of inputs and outputs.
    """
    ins, outs = sizes
    dims = {along.side: dim for dim, along in axes.items()}
    counts = {along.side: along.sections for along in axes.values()}
    count = max(counts.values())
    weight = tensor.detach().movedim((dims["out"], dims["in"]), (0, 1))
    weight = weight.reshape(*weight.shape[:2], -1)
    for index in range(count):
        part = weight
        for place, covers in enumerate((counts["out"], counts["in"])):
            if covers < count:  # it covers all sections, the other dimension only one
                size = part.shape[place] // count
                part = part.narrow(place, index * size, size)
        yield Section(index * (outs // count), index * (ins // count), part)


@dataclass(frozen=True)
class Reader:
    """A layer whose outputs read its inputs by weights.

    Attributes:
        sections: Stretches of (outputs, inputs), true where an output reads an input.
        ins: The numbers of the units on its inputs.
        outs: The numbers of the units on its outputs.
        matters: True for each input whose value matters: the layer cannot do without it.
    """

    sections: tuple[Section, ...]
    ins: Tensor
    outs: Tensor
    matters: Tensor


def reader_of(found: Iterable[Section], ins: Tensor, outs: Tensor) -> Reader:
    """A layer with some weights, all of whose inputs matter; an output reads by nonzero weights."""
    own = tuple(Section(each.outs, each.ins, (each.weight != 0).any(-1)) for each in found)
    return Reader(own, ins, outs, torch.ones_like(ins, dtype=torch.bool))


def inputs_read(found: Iterable[Section], outputs: Tensor, inputs: int) -> Tensor:
    """The inputs that any of some outputs read.

    Args:
        found: Stretches of (outputs, inputs), true where an output reads an input.
        outputs: For each output whether it is alive.
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


def spread_(live: Tensor, found: Sequence[Reader]) -> None:
    """Marks all units as alive that live units read, in place.

    Args:
        live: Whether each unit is alive, by number.
        found: The layers, in order of execution.
    """
    count = -1
    while count != int(live.sum()):
        count = int(live.sum())
        for reader in reversed(found):
            read = inputs_read(reader.sections, live[reader.outs], len(reader.ins))
            live[reader.ins[read & reader.matters]] = True
