"""Connections by weights: the inputs that each output of a layer reads, by its present weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from splitgrow.layers.types import Along, LayerType, Stock, TensorAxes


@dataclass(frozen=True)
class Section:
    """A stretch of outputs and the stretch of inputs that these can read.

    Attributes:
        outs: The first output position.
        ins: The first input position.
        weight: (outputs, inputs, places in the kernel, or gates).
        back: Whether the inputs are the layer's own outputs.
    """

    outs: int
    ins: int
    weight: Tensor
    back: bool = False


def has_weights(entry: LayerType, module: Stock) -> bool:
    """Whether outputs read inputs, or the layer's own outputs, by weights only.

    It is false for layers whose channels are independent of each other.
    """
    if entry.merging.couples or entry.merging.computes_weight or entry.diagonal(module):
        return False
    return any(map(reads, entry.tensors(module).values()))


def reads(axes: TensorAxes) -> bool:
    """Whether a tensor has weights for the channels that a layer reads."""
    return any(along.reads for along in axes.values())


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
        if reads(axes) and getattr(module, name) is not None:
            yield from sections_of(getattr(module, name), axes, entry.sizes(module))


def sections_of(tensor: Tensor, axes: TensorAxes, sizes: tuple[int, int]) -> Iterator[Section]:
    """The weights in a tensor that reads channels.

    Where it runs along no outputs, all of them depend on it.

    Args:
        tensor: The tensor.
        axes: The meaning of its dimensions.
        sizes: The layer's numbers of inputs and outputs.
    """
    ((reading, read),) = ((dim, along) for dim, along in axes.items() if along.reads)
    ins, outs = sizes[read.back], sizes[1]
    made = [(dim, along) for dim, along in axes.items() if not along.reads]
    weight = tensor.detach().movedim(reading, 0)
    if made:
        ((making, make),) = made
        weight = weight.movedim(making + (making < reading), 1).transpose(0, 1)
    else:
        make, weight = Along("out"), weight.expand(outs, *weight.shape)
    # The copies of an axis are as places in a kernel.
    shape = (make.copies, -1, read.copies, weight.shape[1] // read.copies, *weight.shape[2:])
    weight = weight.reshape(shape).movedim((1, 3), (0, 1)).flatten(2)
    counts = make.sections, read.sections
    count = max(counts)
    for index in range(count):
        part = weight
        for place, covers in enumerate(counts):
            if covers < count:  # it covers all sections, the other dimension only one
                size = part.shape[place] // count
                part = part.narrow(place, index * size, size)
        yield Section(index * (outs // count), index * (ins // count), part, read.back)


@torch.no_grad()
def contributed(entry: LayerType, module: Stock, numbers: Tensor) -> Tensor:
    """The sums that constant inputs add to a layer's outputs, in float64 on the weight's device.

    Args:
        entry: The layer's type.
        module: The layer.
        numbers: The value of each input; zero for those that are not constant.
    """
    total = torch.zeros(entry.sizes(module)[1], dtype=torch.float64)
    for section in sections(entry, module):
        rows, columns, _ = section.weight.shape
        total = total.to(section.weight.device)
        of_ins = numbers[section.ins : section.ins + columns].to(total.device)
        at = of_ins.nonzero().flatten()
        summed = section.weight[:, at].double().sum(-1)
        total[section.outs : section.outs + rows] += summed @ of_ins[at]
    return total


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


def readers_of(found: Iterable[Section], ins: Tensor, outs: Tensor) -> list[Reader]:
    """A layer with some weights, as a reader of its inputs, and of its own outputs if it is one.

    All of these matter; an output reads by nonzero weights.
    """
    own = [replace(each, weight=(each.weight != 0).any(-1)) for each in found]
    readers = []
    for back, read in ((False, ins), (True, outs)):
        chosen = tuple(each for each in own if each.back == back)
        if chosen or not back:
            readers.append(Reader(chosen, read, outs, torch.ones_like(read, dtype=torch.bool)))
    return readers


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
