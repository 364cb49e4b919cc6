"""The layers that a policy may grow: one for each group, the model's outputs left out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.errors import FixedWidthError
from splitgrow.growth.layer_list import Layer
from splitgrow.utils.closest_names import did_you_mean


@dataclass(frozen=True)
class Selection:
    """The layers that a policy names.

    Attributes:
        names: The layers that may grow; None for all.
        named: Those of them that are asked for by name, so that outputs of the model may be.
        kept: The layers that keep their widths.
    """

    names: frozenset[str] | None = None
    named: frozenset[str] = frozenset()
    kept: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Candidates:
    """The groups that may grow, each by the layer that is asked for.

    Attributes:
        groups: The groups that a layer stands for, by its name.
        left: Why other layers that can grow are left alone.
    """

    groups: Mapping[str, tuple[int, ...]]
    left: Mapping[str, str] = field(default_factory=dict)

    def of(self, graph: ChannelGraph, names: Iterable[str]) -> list[str]:
        """The layers that stand for the groups of the given ones."""
        groups = {g for name in names for g in graph.growing_groups(graph.nodes[name].outs)}
        return [name for name, own in self.groups.items() if groups & {*own}]


def find_candidates(graph: ChannelGraph, selection: Selection) -> Candidates:
    """The groups that a policy may grow.

    Raises:
        FixedWidthError: If a layer that is asked for by name cannot grow, or no group may.
        ValueError: If a layer is asked for by name, and one that is tied to it is to stay.
    """
    fixed = [name for name in sorted(selection.named) if graph.reason(graph.nodes[name])]
    if fixed:
        raise FixedWidthError(
            "; ".join(f"`{name}` cannot grow: {graph.reason(graph.nodes[name])}" for name in fixed)
        )
    outputs = graph.output_groups()
    groups: dict[str, list[int]] = {}
    left: dict[str, str] = {}
    for group in dict.fromkeys(g for n in graph.sized() for g in graph.growing_groups(n.outs)):
        makers = graph.makers(group)
        reason = _why_left(makers, selection, output=group in outputs)
        if reason:
            left.update(dict.fromkeys(makers, reason))
        else:
            groups.setdefault(_stands_for(graph, group, makers), []).append(group)
    order = {node.name: index for index, node in enumerate(graph.sized())}
    found = {name: tuple(groups[name]) for name in sorted(groups, key=order.__getitem__)}
    if not found:
        reasons = {n.name: graph.reason(n) or left.get(n.name, "") for n in graph.sized()}
        told = "; ".join(f"`{name}`: {reason}" for name, reason in [*reasons.items()][:8])
        raise FixedWidthError(
            f"no layer may grow ({told or 'the model has no layer with a width'})"
        )
    grown = {
        name for group in (g for own in found.values() for g in own) for name in graph.makers(group)
    }
    return Candidates(found, {name: why for name, why in left.items() if name not in grown})


def _why_left(makers: frozenset[str], selection: Selection, *, output: bool) -> str:
    """Why a group is left alone; empty if it may grow.

    Raises:
        ValueError: If it is asked for by name, and is to stay.
    """
    kept = sorted(makers & selection.kept)
    named = sorted(makers & selection.named)
    if kept and named:
        both = "" if named == kept else ", and they are tied"
        raise ValueError(f"`{named[0]}` is to grow and `{kept[0]}` to keep its width{both}")
    if kept:
        return "it is to keep its width" if kept == sorted(makers) else f"tied to `{kept[0]}`"
    if selection.names is not None and not makers & selection.names:
        return "the policy leaves it out"
    if output and not named:
        return "an output of the model, which grows if it is named"
    return ""


def _stands_for(graph: ChannelGraph, group: int, makers: frozenset[str]) -> str:
    """The layer by which a group is asked for: one of no other group, and the narrowest."""
    nodes = [node for node in graph.sized() if node.name in makers]

    def rank(node: LayerNode) -> tuple[int, int]:
        others = len(graph.growing_groups(node.outs))
        return others, graph.multiplicity(node.outs, group)

    return min(nodes, key=rank).name


def closest_names(name: str, layers: Sequence[Layer]) -> str:
    """A hint at the names that are like one that no layer has."""
    return did_you_mean(name, (layer.name for layer in layers), "see `model.layers`")


def layer_named(key: object, layers: Sequence[Layer]) -> Layer:
    """The layer of a name or an index.

    Raises:
        TypeError: If it is neither.
        ValueError: If there is no such layer.
    """
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        raise TypeError(f"a layer is an index or a name, got {key!r}")
    if isinstance(key, int):
        if not 0 <= key < len(layers):
            raise ValueError(f"no layer {key}: the model has layers 0 to {len(layers) - 1}")
        return layers[key]
    found = next((layer for layer in layers if layer.name == key), None)
    if found is None:
        raise ValueError(f"no layer {key!r}; {closest_names(key, layers)}")
    return found
