"""The layers of a growable model, as users see them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.layers.split_layer import stock
from splitgrow.layers.types import layer_type_of


@dataclass(frozen=True)
class Layer:
    """A layer whose width a user can ask for.

    Attributes:
        index: Its place in the order of execution.
        name: Its module path; of a matrix that a module holds and multiplies by itself the
            parameter's name.
        kind: The name of its stock layer type, such as ``Conv2d``; ``Parameter`` for a matrix.
        width: Its number of units.
        step: The smallest number of units by which it can grow; 0 if it cannot grow.
        group: The other layers that grow with it.
        readers: The layers that read its units, and get helpers when it grows.
        growable: Whether it can grow.
        reason: Why it cannot; empty if it can.
    """

    index: int
    name: str
    kind: str
    width: int
    step: int
    group: tuple[str, ...]
    readers: tuple[str, ...]
    reason: str

    @property
    def growable(self) -> bool:
        """Whether it can grow."""
        return not self.reason


def layers_of(graph: ChannelGraph, modules: Mapping[str, nn.Module]) -> tuple[Layer, ...]:
    """The layers whose width a user can ask for, in order of execution."""
    return tuple(
        Layer(
            index=index,
            name=node.name,
            kind=node.kind,
            width=_width(graph, node, modules.get(node.name)),
            step=graph.step(node),
            group=tuple(graph.tied(node)),
            readers=tuple(graph.readers(node)),
            reason=graph.reason(node),
        )
        for index, node in enumerate(graph.sized())
    )


def _width(graph: ChannelGraph, node: LayerNode, module: nn.Module | None) -> int:
    if node.followed or module is None:
        return graph.groups.length(node.outs)
    layer: Any = stock(module)
    entry = layer_type_of(layer)
    if entry is not None:
        return entry.sizes(layer)[1]
    names = ("out_features", "out_channels", "embedding_dim")  # a subclass of a known layer
    return next(int(getattr(layer, name)) for name in names if hasattr(layer, name))
