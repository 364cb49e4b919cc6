"""A growable model at a glance: how its layers began, and what they are now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from splitgrow.analysis.channel_graph import LayerNode
from splitgrow.growth.history import History
from splitgrow.growth.layer_list import layers_of
from splitgrow.layers.split_layer import SplitLayer
from splitgrow.utils.text_tables import Rows, Tabular

_UNITS = 2
"""The column of the numbers of units."""


@dataclass(frozen=True)
class LayerSummary:
    """One layer of a model.

    Attributes:
        name: Its module path, or the name of a parameter.
        kind: Its stock layer type.
        width: Its number of units at first and now.
        blocks: The number of its blocks; 1 if it has not grown.
        parameters: The number of its parameters.
        training: The number of those that train.
    """

    name: str
    kind: str
    width: tuple[int, int]
    blocks: int
    parameters: int
    training: int


@dataclass(frozen=True, repr=False)
class Summary(Tabular):
    """A model, layer by layer. As text it is a table.

    Attributes:
        model: The model's class.
        generation: The open generation.
        edits: The number of edits.
        parameters: The number of parameters; one that several layers share counts once.
        training: The number of those that train.
        layers: The layers with a width, in order of execution.
    """

    model: str
    generation: int
    edits: int
    parameters: int
    training: int
    layers: tuple[LayerSummary, ...]

    def _head(self) -> str:
        edits = f"{self.edits} edit{'s' * (self.edits != 1)}"
        train = "all train" if self.training == self.parameters else f"{self.training:,} train"
        return (
            f"{self.model}: generation {self.generation}, {edits}, {self.parameters:,} parameters "
            f"of which {train}"
        )

    def _rows(self) -> Rows:
        rows = [("layer", "type", "units", "blocks", "parameters", "that train")]
        for item in self.layers:
            before, now = item.width
            width = str(now) if before == now else f"{before} -> {now}"
            counts = str(item.blocks), f"{item.parameters:,}", f"{item.training:,}"
            rows.append((item.name, item.kind, width, *counts))
        return rows

    def _bars(self) -> dict[int, list[tuple[int, int]]]:
        return {_UNITS: [item.width for item in self.layers]}


def summary_of(model: nn.Module, history: History) -> Summary:
    """The summary of a growable model."""
    first: dict[str, int] = {}
    for edit in history.edits:
        widths = [(item.name, item.width[0]) for item in edit.changes]
        for name, before in [*widths, *((item.name, item.width[0]) for item in edit.removed)]:
            first.setdefault(name, before)
    found = []
    for layer in layers_of(history.graph, history.modules):
        node = history.graph.nodes[layer.name]
        module = history.modules.get(node.path)
        blocks = len(module) if isinstance(module, SplitLayer) else 1
        counts = _counts(_parameters_of(model, module, node))
        width = first.get(layer.name, layer.width), layer.width
        found.append(LayerSummary(layer.name, layer.kind, width, blocks, *counts))
    kind = type(model).__name__
    counts = _counts(model.parameters())
    return Summary(kind, history.generation, len(history.edits), *counts, tuple(found))


def _parameters_of(
    model: nn.Module, module: nn.Module | None, node: LayerNode
) -> Iterator[nn.Parameter]:
    if module is not None:
        yield from module.parameters()
    elif node.use is not None:
        yield model.get_parameter(node.name)


def _counts(parameters: Iterable[nn.Parameter]) -> tuple[int, int]:
    """The numbers of all elements, and of those that train."""
    found = [*parameters]
    return sum(p.numel() for p in found), sum(p.numel() for p in found if p.requires_grad)
