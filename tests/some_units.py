"""Units of a layer, drawn for the tests that take them out."""

from __future__ import annotations

import random
from typing import Any

from splitgrow.analysis.units import Unit, places_on
from splitgrow.growth.history_lookup import history_of


def some_channels(model: Any, name: str, draw: random.Random) -> list[int]:
    """Some of the channels of a layer, by whole units, such that each group keeps one."""
    graph = history_of(model).graph
    lying: dict[Unit, list[int]] = {}
    for position, (unit, _) in enumerate(places_on(graph.groups, graph.nodes[name].outs)):
        lying.setdefault(unit, []).append(position)
    chosen: list[Unit] = []
    for group in graph.growing_groups(graph.nodes[name].outs):
        own = [unit for unit in lying if unit.home == group]
        step = graph.multiples.get(group, (1, ""))[0]
        count = draw.randrange(len(own))
        chosen += draw.sample(own, count - count % step)
    return sorted(position for unit in chosen for position in lying[unit])
