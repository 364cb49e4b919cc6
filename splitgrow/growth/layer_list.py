"""The layers of a growable model, as users see them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, SupportsIndex, overload

from torch import nn

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.analysis.channels.channel_axes import groups_of
from splitgrow.layers.split_layer import stock
from splitgrow.layers.types import layer_type_of
from splitgrow.utils.closest_names import did_you_mean
from splitgrow.utils.text_tables import Rows, Tabular

_UNITS = 3
"""The column of the numbers of units."""


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
        output: Whether the model returns its units, so that growth changes the outputs' shape.

    Example:
        >>> import torch, splitgrow
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> layer = net.layers[0]
        >>> layer.name, layer.width, layer.readers, layer.growable
        ('0', 3, ('1',), True)
    """

    index: int
    name: str
    kind: str
    width: int
    step: int
    group: tuple[str, ...]
    readers: tuple[str, ...]
    reason: str
    output: bool = False

    @property
    def growable(self) -> bool:
        """Whether it can grow."""
        return not self.reason


class Layers(Tabular, tuple[Layer, ...]):
    """The layers of a model, in order of execution: a tuple, from which layers can be chosen.

    An index gives a layer, and so does a name.

    Example:
        >>> import torch, splitgrow
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
        ... )
        >>> net = splitgrow.growable(net, torch.ones(1, 2))
        >>> net.layers
        2 layers, of which 2 can grow
          #  layer  type    units  step  grows with  can grow
          0  0      Linear  8      1                 yes
          1  2      Linear  1      1                 yes, output
        >>> net.layers["2"].output
        True
        >>> [layer.name for layer in net.layers.where(output=False)]
        ['0']
    """

    __slots__ = ()

    @overload
    def __getitem__(self, key: SupportsIndex | str) -> Layer: ...
    @overload
    def __getitem__(self, key: slice) -> Layers: ...
    def __getitem__(self, key: SupportsIndex | slice | str) -> Layer | Layers:
        if isinstance(key, slice):
            return Layers(super().__getitem__(key))
        if not isinstance(key, str):
            return super().__getitem__(key)
        found = next((layer for layer in self if layer.name == key), None)
        if found is None:
            hint = did_you_mean(key, self.names, "`names` lists them")
            raise ValueError(f"no layer {key!r}; {hint}")
        return found

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the layers."""
        return tuple(layer.name for layer in self)

    def where(
        self,
        *,
        kind: str | Collection[str] | None = None,
        name: str | None = None,
        growable: bool | None = None,
        output: bool | None = None,
    ) -> Layers:
        """The layers that meet all conditions.

        Args:
            kind: The layer type, such as "Conv2d", or several.
            name: A pattern for the name, such as "features.*" or "*.mlp.*" (`fnmatch`'s).
            growable: Whether the layer can grow.
            output: Whether the model returns its units.

        Example:
            All hidden layers of a backbone by a quarter, but not the head:

            >>> import torch, splitgrow
            >>> net = torch.nn.Sequential(
            ...     torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
            ... )
            >>> net = splitgrow.growable(net, torch.ones(1, 2))
            >>> hidden = net.layers.where(growable=True, output=False)
            >>> edit = net.expand({layer.name: layer.width // 4 for layer in hidden})
            >>> [layer.width for layer in net.layers]
            [10, 1]
        """
        kinds = {kind} if isinstance(kind, str) else kind
        return Layers(
            layer
            for layer in self
            if (kinds is None or layer.kind in kinds)
            and (name is None or fnmatchcase(layer.name, name))
            and growable in (None, layer.growable)
            and output in (None, layer.output)
        )

    def _head(self) -> str:
        able = sum(layer.growable for layer in self)
        return f"{len(self)} layer{'s' * (len(self) != 1)}, of which {able} can grow"

    def _rows(self) -> Rows:
        rows = [("#", "layer", "type", "units", "step", "grows with", "can grow")]
        for layer in self:
            able = ("yes, output" if layer.output else "yes") if layer.growable else layer.reason
            sizes = str(layer.width), str(layer.step or "")
            group = ", ".join(layer.group)
            rows.append((str(layer.index), layer.name, layer.kind, *sizes, group, able))
        return rows

    def _bars(self) -> dict[int, list[tuple[int, int]]]:
        return {_UNITS: [(layer.width, layer.width) for layer in self]}


def layers_of(graph: ChannelGraph, modules: Mapping[str, nn.Module]) -> Layers:
    """The layers whose width a user can ask for, in order of execution."""
    outputs = graph.output_groups()
    return Layers(
        Layer(
            index=index,
            name=node.name,
            kind=node.kind,
            width=_width(graph, node, modules.get(node.name)),
            step=graph.step(node),
            group=tuple(graph.tied(node)),
            readers=tuple(graph.readers(node)),
            reason=graph.reason(node),
            output=not outputs.isdisjoint(groups_of(graph.groups.resolve(node.outs))),
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
