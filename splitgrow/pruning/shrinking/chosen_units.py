"""Which units go: a request by layers and channels as units of groups, which go as a whole."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.analysis.channels.channel_axes import Axis, Run
from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.analysis.units import Unit, UnitNumbers
from splitgrow.errors import FixedWidthError, UnsupportedLayerError
from splitgrow.growth.edit_parts import NumberChange, Removal
from splitgrow.growth.planning import checked_rounding, find_node
from splitgrow.pruning.shrinking.weakest import squared_norms, weakest_channels
from splitgrow.utils.spans import Spans

UnitsByGroup = Mapping[int, Collection[int]]
"""Some units of each group, counted from 0."""


class Chosen:
    """Some units, on every axis that they lie on.

    Args:
        groups: The store of groups.
        units: The units.
    """

    def __init__(self, groups: Groups, units: UnitsByGroup) -> None:
        self._numbers = UnitNumbers(groups)
        for group in units:
            self._numbers.on((Run(group, 1),))
        self._groups = groups
        self._marks = self._numbers.marks(
            Unit(group, nth) for group, own in units.items() for nth in own
        )
        self._known: dict[Axis, Tensor] = {}

    def on(self, axis: Axis) -> Tensor:
        """The positions of an axis that hold one of the units, as bools."""
        axis = self._groups.resolve(axis)
        if axis not in self._known:
            numbers = self._numbers.on(axis)
            older = numbers < len(self._marks)  # the others were met later
            self._known[axis] = older & self._marks[numbers.where(older, torch.zeros_like(numbers))]
        return self._known[axis]


def stretches(marks: Tensor) -> Spans:
    """The marked positions, as stretches of a first position and a length."""
    found: list[tuple[int, int]] = []
    for position in marks.nonzero().flatten().tolist():
        if found and sum(found[-1]) == position:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((position, 1))
    return tuple(found)


def removals_of(graph: ChannelGraph, chosen: Chosen) -> Iterator[Removal]:
    """The channels that each layer loses, in order of execution; parameters are not counted."""
    for node in graph.nodes.values():
        ins, outs = chosen.on(node.ins), chosen.on(node.outs)
        if node.followed and (bool(ins.any()) or bool(outs.any())):
            in_width, width = (len(ins), int((~ins).sum())), (len(outs), int((~outs).sum()))
            where = stretches(ins), stretches(outs)
            yield Removal(node.name, node.kind, in_width, width, *where, 0, node.use)


def numbers_without(graph: ChannelGraph, chosen: Chosen) -> tuple[NumberChange, ...]:
    """The changes of the numbers that modules hold."""
    found = []
    for number in graph.numbers:
        stays = ~chosen.on(number.axis)
        if not bool(stays.all()):
            value = (len(stays), int(stays.sum()))
            found.append(NumberChange(number.module, number.attribute, value))
    return tuple(found)


def requested_units(
    graph: ChannelGraph,
    modules: Mapping[str, nn.Module],
    request: Mapping[int | str, int | Sequence[int]],
    round_to: int = 1,
) -> dict[int, list[int]]:
    """The units that a request takes out, by group.

    Args:
        graph: The channel graph.
        modules: The model's modules by path.
        request: By layers' names or indices the output channels that go, or how many.
        round_to: The number of which the width of a layer that loses a number is a multiple.

    Raises:
        TypeError: If it is of another type.
        ValueError: If it is empty, there is no such layer or channel, one is named twice, or only
            some channels of a unit are.
        FixedWidthError: If a layer's width is fixed.
        UnsupportedLayerError: If a module has no width of its own.

    The error names all faults; its type is that of the first.
    """
    if not isinstance(request, Mapping):
        raise TypeError(f"a request maps layers to the channels that go, got {request!r}")
    if not request:
        raise ValueError("a request maps layers to the channels that go, got none")
    checked_rounding(round_to)
    scores = squared_norms(graph, modules, _counted_groups(graph, request))
    units: dict[int, set[int]] = defaultdict(set)
    problems: list[Exception] = []
    for layer, channels in request.items():
        try:
            node = find_node(graph, layer)
            if not node.followed:
                raise FixedWidthError(f"`{node.name}` cannot shrink: {graph.reason(node)}")
            if not isinstance(channels, Iterable):
                channels = weakest_channels(graph, node, channels, scores, round_to)
            for group, own in _units_at(graph, node, _checked(graph, node, channels)).items():
                units[group].update(own)
        except (TypeError, ValueError, FixedWidthError, UnsupportedLayerError) as problem:
            problems.append(problem)
    if not problems:
        problems += _left(graph, units)
    if problems:
        raise type(problems[0])("; ".join(map(str, problems)))
    return {group: sorted(own) for group, own in units.items()}


def _counted_groups(
    graph: ChannelGraph, request: Mapping[int | str, int | Sequence[int]]
) -> list[int]:
    """The groups of the layers that lose a number of channels; unknown layers have none."""
    found: dict[int, None] = {}
    for layer, channels in request.items():
        if not isinstance(channels, Iterable):
            with suppress(TypeError, ValueError, UnsupportedLayerError):
                found.update(dict.fromkeys(graph.growing_groups(find_node(graph, layer).outs)))
    return list(found)


def _checked(graph: ChannelGraph, node: LayerNode, channels: Sequence[int]) -> list[int]:
    """The numbers of channels, each once, in order.

    Raises:
        TypeError: If they are no ints.
        ValueError: If there are none, the layer has no such channel, or one is named twice.
    """
    if isinstance(channels, Tensor):
        channels = channels.tolist()
    if isinstance(channels, (str, bytes)) or not isinstance(channels, Iterable):
        raise TypeError(f"the channels of `{node.name}` that go are ints, got {channels!r}")
    found, width = list(channels), graph.groups.length(node.outs)
    for channel in found:
        if isinstance(channel, bool) or not isinstance(channel, int):
            raise TypeError(f"the channels of `{node.name}` that go are ints, got {channel!r}")
        if not 0 <= channel < width:
            raise ValueError(
                f"`{node.name}` has no channel {channel}: it has those from 0 to {width - 1}"
            )
    if not found:
        raise ValueError(f"no channels of `{node.name}` are named")
    if len({*found}) < len(found):
        raise ValueError(f"a channel of `{node.name}` is named twice")
    return sorted(found)


def _units_at(
    graph: ChannelGraph, node: LayerNode, channels: Sequence[int]
) -> dict[int, list[int]]:
    """The units that lie on a layer's channels, by group.

    Raises:
        FixedWidthError: If a channel is of a constant number, or its group is fixed.
        ValueError: If a unit lies on other channels of the layer, too.
    """
    numbers = UnitNumbers(graph.groups)
    on_axis = numbers.on(node.outs)
    named = torch.zeros(len(on_axis), dtype=torch.bool)
    named[list(channels)] = True
    units = torch.unique(on_axis[named])
    homes = numbers.by_home(units)
    for home in homes:
        if not isinstance(home, int) or graph.groups.is_fixed(home):
            reason = graph.reason(node) or "these channels are of a constant number"
            raise FixedWidthError(f"`{node.name}` cannot shrink: {reason}")
    left = torch.isin(on_axis, units) & ~named
    if bool(left.any()):
        own = (on_axis == on_axis[left][0]).nonzero().flatten().tolist()
        whole = f"{own[0]} to {own[-1]}" if own[-1] - own[0] == len(own) - 1 else f"{own}"
        raise ValueError(
            f"the channels {whole} of `{node.name}` are one unit, such as a head, and go "
            f"together: it shrinks in steps of {len(own)}"
        )
    return {home: nths for home, nths in homes.items() if isinstance(home, int)}


def _left(graph: ChannelGraph, units: UnitsByGroup) -> list[Exception]:
    """The problems of groups that would keep no unit, or another number than a kernel needs."""
    problems: list[Exception] = []
    for group, own in units.items():
        width, makers = graph.groups.width(group), sorted(graph.makers(group))
        names = ", ".join(f"`{name}`" for name in makers[:3])
        step, why = graph.multiples.get(group, (1, ""))
        if len(own) == width:
            problems.append(ValueError(f"{names} would have no units left"))
        elif len(own) % step:
            problems.append(ValueError(f"{names} shrink in steps of {step} units: {why}"))
    return problems
