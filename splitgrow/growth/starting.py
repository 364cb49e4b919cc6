"""The values of added blocks that leave the old function as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor, nn

from splitgrow.growth.prepared import PreparedLayer
from splitgrow.layers.types import Along, Start, known_layer_type, layer_type_of_class
from splitgrow.utils.spans import Spans, take


def set_start_values_(
    layer: PreparedLayer,
    free: Start = Start.FREE,
    cancelled: Mapping[str, Sequence[bool]] = MappingProxyType({}),
) -> None:
    """Gives a layer's added blocks values that change no old output.

    Helpers are zero, but those for new inputs that are zero themselves keep what they have. New
    units are zero, means or copies of the old ones where the edit says so.

    Args:
        layer: The layer.
        free: The values of new units that may have any; by default those that they have.
        cancelled: By side, "in" or "out", the channels that the edit adds there and whose effects
            on the old outputs cancel each other out, so that helpers keep what they have for them.
    """
    with torch.no_grad():
        for purpose, block in layer.added.items():
            if purpose != "helper":
                _zero_(layer, block, helper=False, cancelled={})
                starts = layer.starts(purpose)
                _lead_back_(layer, [free if s is Start.FREE else s for s in starts])
            elif layer.layer_type.looks_up:
                _average_rows_(layer, block)
            else:
                _zero_(layer, block, helper=True, cancelled=cancelled)


def _zero_(
    layer: PreparedLayer,
    block: nn.Module,
    *,
    helper: bool,
    cancelled: Mapping[str, Sequence[bool]],
) -> None:
    """Sets a block's values for some channels to zero.

    Of a layer that reads each channel by itself only those that are added, since it makes zeros of
    zeros with any weight.
    """
    chosen = {
        side: [(start is Start.ZERO) != helper for start in layer.starts_on(side)]
        for side in ("in", "out")
    }
    for side, kept in cancelled.items():
        pairs = zip(chosen[side], kept, strict=True)
        chosen[side] = [zeroed and not own for zeroed, own in pairs]
    diagonal = not helper and layer.layer_type.diagonal(layer.original)
    # The type of a block may not cover one of so few channels, such as a PReLU of one.
    entry = layer_type_of_class(type(block)) or known_layer_type(block)
    for name, axes in entry.tensors(block).items():
        tensor = getattr(block, name, None)
        if helper and name in layer.led:
            continue  # another layer makes these units
        own = isinstance(tensor, nn.Parameter) or layer.change.use is not None
        if not isinstance(tensor, Tensor) or not own:
            continue
        if diagonal and name not in layer.layer_type.shifts:
            continue
        added = {dim: along for dim, along in axes.items() if along.reads == helper}
        # A helper may have the form of a depthwise convolution, whose weight has no such one.
        sides = {along.side for along in added.values()} or {"in" if helper else "out"}
        if all(all(chosen[side]) for side in sides):
            tensor.zero_()
            continue
        for dim, along in added.items():
            _zero_channels(tensor, dim, along, chosen[along.side])


def _average_rows_(layer: PreparedLayer, block: nn.Module) -> None:
    """Gives the new rows of a table, which nothing has looked up yet, the mean of the old ones."""
    for name, axes in layer.layer_type.tensors(layer.original).items():
        whole = layer.value(name)
        if whole is None or name in layer.led:
            continue
        for dim, along in axes.items():
            if along.side == "in":
                edit = layer.composition.blocks[-1].edit
                mean = _mean(whole, dim, layer.composition.ins.spans(edit.__gt__))
                own = getattr(block, name)
                own.copy_(mean.narrow(1 - dim, 0, own.shape[1 - dim]))


def _zero_channels(tensor: Tensor, dim: int, along: Along, chosen: Sequence[bool]) -> None:
    """Sets the slices of the chosen channels to zero in a tensor."""
    if any(chosen):
        mask = torch.tensor(chosen, device=tensor.device)
        # The tensor has one of several equal sections, for all of them.
        section = mask.reshape(along.sections, -1).any(0).repeat(along.copies)
        tensor.index_fill_(dim, section.nonzero().flatten(), 0)


def _lead_back_(layer: PreparedLayer, starts: Sequence[Start]) -> None:
    """Sets new units that are to be means or copies of the old ones."""
    if not {*starts} & {Start.MEAN, Start.COPY} or layer.layer_type.reads_back(layer.original):
        return
    for key, axes in layer.tensors.items():
        whole = layer.value(key)
        if whole is None or not whole.is_floating_point():
            continue
        for dim, along in axes.items():
            if along.side == "out":
                whole = _led_back(layer, starts, whole, (dim, along.sections))
        layer.fill_(key, whole)


def _led_back(
    layer: PreparedLayer, starts: Sequence[Start], whole: Tensor, along: tuple[int, int]
) -> Tensor:
    """A tensor of the plain layer whose new units are made of the old ones, along one dimension."""
    dim, sections = along
    edit = layer.composition.blocks[-1].edit
    outs = layer.composition.outs.section(sections)
    sources = layer.sources[: outs.length]  # those of one section stand for all
    new = [n for start, count in outs.spans(edit.__eq__) for n in range(start, start + count)]
    at = dict(zip(new, starts, strict=False))
    averaged = [position for position, start in at.items() if start is Start.MEAN]
    copied = [position for position, start in at.items() if start is Start.COPY]
    made = whole.clone()
    if averaged:
        mean = _mean(whole, dim, outs.spans(edit.__gt__)).to(whole.dtype)
        made.index_copy_(dim, _index(averaged, whole), mean.repeat_interleave(len(averaged), dim))
    if copied:
        rows = whole.index_select(dim, _index([sources[n] for n in copied], whole))
        made.index_copy_(dim, _index(copied, whole), rows)
    return made


def _mean(whole: Tensor, dim: int, spans: Spans) -> Tensor:
    """The mean along a dimension of the slices at some positions, in float64."""
    return take(whole, dim, spans).double().mean(dim, keepdim=True)


def _index(positions: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(positions, device=like.device)
