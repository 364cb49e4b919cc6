"""Numbers that say how wide a module's layers are, though forward does not read them.

Forward's own numbers are followed exactly. Others, such as the `num_attention_heads` of an
attention that reshapes by -1, decide nothing, but the user's other code may read them; they are
kept true where name and value leave no doubt.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping

from torch import nn

from splitgrow.axes import Axis, Run
from splitgrow.graph import ChannelGraph, HeldNumber

_WIDTH = re.compile(r"feature|channel|plane|dim|size|width|hidden|unit|filter|inner|^n[fx]$")
_NO_WIDTH = re.compile(
    r"kernel|patch|window|image|img|vocab|batch|position|seq|max|pad|group|stride|step|chunk|block"
)


def unread_numbers(
    graph: ChannelGraph,
    modules: Mapping[str, nn.Module],
    read: Collection[tuple[str, str]],
) -> Iterator[HeldNumber]:
    """The numbers, other than those that were read, that follow widths of the module's layers.

    Args:
        graph: The channel graph.
        modules: The model's modules by path.
        read: The numbers that forward reads, as (module's path, attribute).
    """
    layers: dict[str, list[Axis]] = {}
    for node in graph.nodes.values():
        owner = node.name.rpartition(".")[0]
        if owner not in graph.nodes:  # a layer, behind which another was inserted
            layers.setdefault(owner, []).extend((node.outs, node.ins))
    for name, axes in layers.items():
        held = {k: v for k, v in vars(modules[name]).items() if type(v) is int and v > 1}
        head_size = next((v for k, v in held.items() if _is_head_size(k)), 0)
        for key, value in held.items():
            if (name, key) not in read:
                axis = _axis_for(graph, key, value, axes, head_size)
                if axis is not None:
                    yield HeldNumber(name, key, axis)


def _is_head_size(key: str) -> bool:
    return bool(re.search(r"head_?(dim|size)", key)) and "all" not in key


def _axis_for(
    graph: ChannelGraph, key: str, value: int, axes: list[Axis], head_size: int
) -> Axis | None:
    """The one axis that the number can mean; None if there is none, or more than one."""
    resolved = [graph.groups.resolve(axis) for axis in axes]
    if "head" in key:
        resolved = [axis for axis in resolved if any(run.repeat > 1 for run in axis)]
        if not re.search(r"dim|size", key):
            resolved = [heads for axis in resolved for heads in _heads(axis, head_size)]
    elif not _WIDTH.search(key) or _NO_WIDTH.search(key):
        return None
    fitting = [axis for axis in resolved if graph.groups.length(axis) == value]
    sizes = [graph.groups.size(axis) for axis in fitting]
    if not sizes or not graph.groups.can_grow(fitting[0]):
        return None
    return fitting[0] if all(graph.groups.same_size(sizes[0], size) for size in sizes) else None


def _heads(axis: Axis, head_size: int) -> Iterator[Axis]:
    """The axis of the heads whose features lie on an axis, if that is what lies there."""
    run = axis[0]
    size = head_size or run.repeat
    if set(axis) == {run} and run.group is not None and run.repeat % size == 0:
        yield (Run(run.group, run.repeat // size),)
