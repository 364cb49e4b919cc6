"""The ways in which a stream can grow that norms over all channels read: the exact ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode


def find_ways(
    graph: ChannelGraph, growth: Mapping[int, int], way: str | None = None
) -> dict[int, str]:
    """The way in which each group grows that a norm over all channels reads.

    Args:
        graph: The channel graph.
        growth: The units that groups gain.
        way: The way that is asked for; None for each group's preferred one.

    Raises:
        ValueError: If the way that is asked for would not leave the function as it is, or no way
            does for this number of units.
    """
    chosen, problems = {}, []
    for group, units in growth.items():
        exact = graph.ways.get(group)
        if exact is None:
            continue
        fitting = [w for w in exact if units % graph.unit_step(group, w) == 0]
        if way in fitting or (way is None and fitting):
            chosen[group] = way or fitting[0]
        else:
            problems.append(_no_such_way(graph, group, way, exact))
    if problems:
        raise ValueError("; ".join(problems))
    return chosen


def _no_such_way(graph: ChannelGraph, group: int, way: str | None, exact: Sequence[str]) -> str:
    width = graph.groups.width(group)
    names = [n.name for n in graph.sized() if group in graph.growing_groups(n.outs)]
    told = [
        f"'duplicate', to {2 * width} or {3 * width}" if each == "duplicate" else f"{each!r}"
        for each in exact
    ]
    asked = "by so many units" if way is None or way in exact else f"by {way!r}"
    why = graph.lost.get(group, {}).get(way or "", "")
    return (
        f"the {width} units of {' and '.join(map(repr, names[:3]))} cannot grow {asked} without a "
        f"change of the model's function{f' ({why})' if why else ''}; exact here: "
        f"{', or '.join(told)}"
    )


def why_in_steps(graph: ChannelGraph, node: LayerNode, way: str | None) -> str:
    """Why the units of a layer's groups come several at a time; empty if they do not."""
    groups = [g for g in graph.growing_groups(node.outs) if graph.unit_step(g, way) > 1]
    if not groups:
        return ""
    if graph.way_of(groups[0], way) != "duplicate":
        return f" (at other widths forward fails: {graph.multiples[groups[0]][1]})"
    if way is not None:
        return f" (by {way!r})"
    why = next(iter(graph.lost.get(groups[0], {}).values()), "")
    return f" ('duplicate' is the only exact way here{f': {why}' if why else ''})"
