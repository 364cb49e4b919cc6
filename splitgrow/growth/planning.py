"""From a request to an edit: the growth, or every reason why it cannot be. Changes nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress

from torch import nn

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.analysis.channels.channel_axes import groups_of
from splitgrow.analysis.ties import turned_holders
from splitgrow.errors import FixedWidthError, UnsupportedLayerError
from splitgrow.growth.edit_parts import LayerChange, NumberChange
from splitgrow.growth.edits import Edit
from splitgrow.growth.planned_blocks import count_new_parameters, planned_blocks
from splitgrow.growth.ways import find_ways, why_in_steps
from splitgrow.layers.split_layer import stock
from splitgrow.layers.tensor_holder import layer_at
from splitgrow.layers.types import Join, LayerType, Start, known_layer_type
from splitgrow.utils.closest_names import did_you_mean


def find_node(graph: ChannelGraph, layer: int | str) -> LayerNode:
    """The layer of an index or a name.

    Raises:
        TypeError: If `layer` is neither.
        ValueError: If there is no such layer.
        UnsupportedLayerError: If there is such a module, but a user cannot ask for its width.
    """
    sized = graph.sized()
    if isinstance(layer, bool) or not isinstance(layer, (int, str)):
        raise TypeError(f"a layer is an index or a name, got {layer!r}")
    if isinstance(layer, int):
        if not 0 <= layer < len(sized):
            raise ValueError(f"no layer {layer}: the model has layers 0 to {len(sized) - 1}")
        return sized[layer]
    name = layer if layer in graph.nodes else graph.aliases.get(layer)
    if name in graph.nodes and graph.nodes[name].sized:
        return graph.nodes[name]
    if name is not None:
        raise UnsupportedLayerError(
            f"`{layer}` has no width that could be asked for: only convolutions, Linear layers, "
            f"embeddings, recurrent layers and matrices with units of their own have; norms and "
            f"activations follow the layer that they read"
        )
    hint = did_you_mean(layer, (node.name for node in sized), "see `model.layers`")
    raise ValueError(f"no layer {layer!r}; {hint}")


def reads_values(graph: ChannelGraph, request: object) -> bool:
    """Whether new units of a request are made of the old ones, whose values are then needed.

    Args:
        graph: The channel graph.
        request: Numbers of units by layers' names or indices; none of them is checked yet.
    """
    for layer in request if isinstance(request, Mapping) else ():
        with suppress(TypeError, ValueError, UnsupportedLayerError):
            if graph.makes_new_of_old(find_node(graph, layer)):
                return True
    return False


def find_growth(graph: ChannelGraph, request: Mapping[str, int], way: str | None) -> dict[int, int]:
    """The units that each group of channels must gain to meet each layer's request.

    Args:
        graph: The channel graph.
        request: The number of units by layer.
        way: The way in which groups grow that a norm over all channels reads; None for each group's
            preferred one.

    Raises:
        FixedWidthError: If layers cannot grow; all of them are named.
        ValueError: If numbers do not fit; all of them are named, with the widths that do.
    """
    nodes = {name: graph.nodes[name] for name in request}
    fixed = [
        f"`{name}` cannot grow: {graph.reason(node)}"
        for name, node in nodes.items()
        if graph.reason(node)
    ]
    if fixed:
        raise FixedWidthError("; ".join(fixed))
    growth: dict[int, int] = {}
    misfits = []
    # A layer with fewer groups has fewer ways to grow, so it chooses first.
    for name in sorted(request, key=lambda name: len(graph.growing_groups(nodes[name].outs))):
        missing = request[name] - _gain(graph, nodes[name], growth)
        known = graph.steps(nodes[name], way).items()
        steps = {group: step for group, step in known if group not in growth}
        shares = _shares(steps, missing)
        if shares is None:
            misfits.append(_misfit(graph, nodes[name], request, growth, way))
        else:
            growth.update({g: times * graph.unit_step(g, way) for g, times in shares.items()})
    for name, node in nodes.items():
        if not misfits and _gain(graph, node, growth) != request[name]:
            misfits.append(_misfit(graph, node, request, growth, way))
    if misfits:
        raise ValueError("; ".join(misfits))
    return growth


def _shares(steps: Mapping[int, int], total: int) -> dict[int, int] | None:
    """The units that each group gains so that the layer gains `total`; None if nothing fits.

    Args:
        steps: The layer's growth for each unit of a group, the preferred group first.
        total: The layer's total growth.
    """
    if total == 0:
        return {}
    if total < 0 or not steps or total % math.gcd(*steps.values()):
        return None
    for group, step in steps.items():
        if total % step == 0:
            return {group: total // step}
    # reached[t]: the group whose unit leads to t, when smaller totals are reached already
    reached: dict[int, int] = {}
    for part in range(1, total + 1):
        for group, step in steps.items():
            if part == step or part - step in reached:
                reached[part] = group
                break
    shares: dict[int, int] = {}
    while total in reached:
        group = reached[total]
        shares[group] = shares.get(group, 0) + 1
        total -= steps[group]
    return shares or None


def checked_rounding(round_to: object) -> int:
    """The number of which widths are multiples.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is not positive.
    """
    if isinstance(round_to, bool) or not isinstance(round_to, int):
        raise TypeError(f"round_to must be an int, got {round_to!r}")
    if round_to < 1:
        raise ValueError(f"round_to (={round_to}) must be at least 1")
    return round_to


def rounded_up(
    graph: ChannelGraph, request: Mapping[str, int], round_to: int, way: str | None
) -> dict[str, int]:
    """The request with each number raised until the layer's new width is a multiple of `round_to`.

    With `round_to` 1, nothing is raised: a number that does not fit is refused.

    Raises:
        TypeError: If `round_to` is not an int.
        ValueError: If it is not positive, or a layer has no such width.
    """
    checked_rounding(round_to)
    return {
        name: n if round_to == 1 else _rounded_up(graph, graph.nodes[name], n, round_to, way)
        for name, n in request.items()
    }


def _rounded_up(
    graph: ChannelGraph, node: LayerNode, n: int, round_to: int, way: str | None
) -> int:
    steps = graph.steps(node, way)
    if not steps:
        return n  # it cannot grow at all, and `find_growth` says so
    width = graph.groups.length(node.outs)
    # Beyond the point where every common multiple of the steps is reached, the numbers that fit
    # repeat after `period` units.
    period = math.lcm(round_to, *steps.values())
    for raised in range(n, n + period + max(steps.values()) ** 2 + 1):
        if (width + raised) % round_to == 0 and _shares(steps, raised) is not None:
            return raised
    raise ValueError(
        f"`{node.name}` has no width that is a multiple of {round_to}: its {width} units grow in "
        f"steps of {min(steps.values())}"
    )


def _gain(graph: ChannelGraph, node: LayerNode, growth: Mapping[int, int]) -> int:
    return sum(count for _, count in graph.groups.insertions(node.outs, growth))


def _misfit(
    graph: ChannelGraph,
    node: LayerNode,
    request: Mapping[str, int],
    growth: Mapping[int, int],
    way: str | None,
) -> str:
    n = request[node.name]
    gained = _gain(graph, node, growth)
    if gained:
        tied = [name for name in graph.tied(node) if name in request]
        return (
            f"n (={n}) for `{node.name}` contradicts what is asked for {', '.join(tied)}: they are "
            f"tied, and that gives it {gained}"
        )
    width = graph.groups.length(node.outs)
    steps = graph.steps(node, way)
    step = min(steps.values())
    fits = [m for m in range(1, n + 2 * max(steps.values()) + 1) if _shares(steps, m) is not None]
    below, above = [m for m in fits if m < n], [m for m in fits if m > n]
    fitting = [width + m for m in (below[-1:] + above[:1] if below else above[:2])]
    return (
        f"n (={n}) does not fit `{node.name}`: its {width} units grow in steps of {step}, so the "
        f"nearest widths are {' and '.join(map(str, fitting))}"
        f"{why_in_steps(graph, node, way)}"
    )


def plan_changes(
    graph: ChannelGraph,
    modules: Mapping[str, nn.Module],
    growth: Mapping[int, int],
    ways: Mapping[int, str],
) -> tuple[LayerChange, ...]:
    """The change of each layer that a growth touches.

    Args:
        graph: The channel graph.
        modules: The model's modules by path.
        growth: The units that groups gain.
        ways: The ways in which groups grow that a norm over all channels reads.
    """
    changes = []
    turned = turned_holders(graph.ties, modules)
    counted: dict[str, set[str]] = defaultdict(set)
    for _, *others in graph.ties:
        for path, key in others:
            counted[path].add(key)
    for node in graph.nodes.values():
        ins = graph.groups.insertions(node.ins, growth)
        outs = graph.groups.insertions(node.outs, growth)
        if ins or outs:
            before = (graph.groups.length(node.ins), graph.groups.length(node.outs))
            gain = (sum(count for _, count in ins), sum(count for _, count in outs))
            original = stock(layer_at(modules, node.name, node.use))
            layer = known_layer_type(original)
            order = node.name in turned
            blocks = planned_blocks(layer, original, before, gain, helper_last=order)
            born = graph.starts_on(node, "ins", ways, growth)
            changes.append(
                LayerChange(
                    name=node.name,
                    kind=node.kind,
                    in_width=(before[0], before[0] + gain[0]),
                    width=(before[1], before[1] + gain[1]),
                    ins=ins,
                    outs=outs,
                    start_ins=tuple(start.value for start in born),
                    start_outs=tuple(
                        start.value for start in graph.starts_on(node, "outs", ways, growth)
                    ),
                    join=_join(layer, original, born, shares=_shares_out(graph, node, ways)).value,
                    blocks=tuple(blocks),
                    parameters=count_new_parameters(layer, original, blocks, counted[node.name]),
                    use=node.use,
                )
            )
    return tuple(changes)


def _shares_out(graph: ChannelGraph, node: LayerNode, ways: Mapping[int, str]) -> bool:
    """Whether a norm's outputs count for less in the ways in which its groups grow."""
    on_it = groups_of(graph.groups.resolve(node.ins))
    used = {ways[group] for group in on_it if group in ways}
    return any(node.name in graph.starts[way].sharing for way in used)


def _join(layer: LayerType, original: nn.Module, born: Sequence[Start], *, shares: bool) -> Join:
    """How new channels join in the statistic that all channels of a layer share."""
    if not (layer.merging.couples and layer.starts(original)):
        return Join.APART
    if shares:
        return Join.SHARES
    if {*born} & {Start.ZERO, Start.MEAN}:
        return Join.DILUTES
    return Join.REPEATS if born and layer.merging.correction else Join.APART


def plan_numbers(graph: ChannelGraph, growth: Mapping[int, int]) -> tuple[NumberChange, ...]:
    """The changes of the numbers that modules hold."""
    changes = []
    for number in graph.numbers:
        before = graph.groups.length(number.axis)
        gained = sum(count for _, count in graph.groups.insertions(number.axis, growth))
        if gained:
            value = (before, before + gained)
            changes.append(NumberChange(number.module, number.attribute, value))
    return tuple(changes)


def check_request(graph: ChannelGraph, request: Mapping[int | str, int]) -> dict[str, int]:
    """A request by layer names, checked as far as possible without the groups.

    Raises:
        TypeError: If it is no mapping, a layer is neither index nor name, or a number of units is
            not an int.
        ValueError: If it is empty, a layer does not exist or is named twice, or a number is not
            positive.
        UnsupportedLayerError: If a module has no width that a user can ask for.

    The error names all faults; its type is that of the first.
    """
    if not isinstance(request, Mapping):
        raise TypeError(f"a request maps layers to numbers of units, got {request!r}")
    if not request:
        raise ValueError("a request maps layers to numbers of units, got none")
    checked: dict[str, int] = {}
    problems: list[Exception] = []
    for layer, n in request.items():
        try:
            name = find_node(graph, layer).name
            if name in checked:
                raise ValueError(f"`{name}` is asked for twice")
            checked[name] = _checked_units(name, n)
        except (TypeError, ValueError, UnsupportedLayerError) as problem:
            problems.append(problem)
    if problems:
        raise type(problems[0])("; ".join(map(str, problems)))
    return checked


def _checked_units(name: str, n: object) -> int:
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"n (={n!r}) for `{name}` must be an int, the number of units to add")
    if n < 1:
        raise ValueError(f"n (={n}) for `{name}` must be at least 1: layers only grow")
    return n


def make_plan(
    graph: ChannelGraph,
    modules: Mapping[str, nn.Module],
    growth: Mapping[int, int],
    edits: Sequence[Edit],
    generation: tuple[int, int | None],
    *,
    request: Mapping[str, int] | None = None,
    way: str | None = None,
) -> Edit:
    """The edit that gives each group of channels some units.

    Args:
        graph: The model's channel graph.
        modules: The model's modules by path.
        growth: Units by group.
        edits: The model's history.
        generation: The generation of the new blocks, and the one that is closed first, if any.
        request: The requested units by layer name; by default all that layers gain.
        way: The way in which groups grow that a norm over all channels reads; None for each group's
            preferred one.

    Raises:
        ValueError: If the way that is asked for is not exact.
    """
    ways = find_ways(graph, growth, way)
    if request is None:
        gained = {node.name: _gain(graph, node, growth) for node in graph.sized()}
        request = {name: n for name, n in gained.items() if n}
    return Edit(
        index=len(edits) + 1,
        generation=generation[0],
        closes=generation[1],
        request=request,
        growth=growth,
        changes=plan_changes(graph, modules, growth, ways),
        numbers=plan_numbers(graph, growth),
        ways=ways,
    )
