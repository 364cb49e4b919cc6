"""The batch norms right behind a layer, which take back any factor of its outputs."""

from __future__ import annotations

from typing import Any

from splitgrow.growth.prepared import PreparedEdit
from splitgrow.layers.split_layer import stock
from splitgrow.layers.tensor_holder import layer_at, split_of
from splitgrow.layers.types import known_layer_type


def batch_norms_behind(prepared: PreparedEdit, name: str) -> tuple[Any, ...]:
    """The blocks of the batch norm that is called next after a layer, on its outputs.

    Empty if the next layer on these channels is none, or has no running statistics.

    Args:
        prepared: The edit.
        name: The layer's name.
    """
    graph = prepared.graph
    outs = graph.groups.resolve(graph.nodes[name].outs)
    order = list(graph.nodes)
    modules = dict(prepared.model.named_modules())
    for path in order[order.index(name) + 1 :]:
        node = graph.nodes[path]
        if graph.groups.resolve(node.ins) != outs or node.use is not None:
            continue
        module = layer_at(modules, node.name, node.use)
        norm = known_layer_type(stock(module)).norm(stock(module))
        if norm is None or not norm.batch or getattr(stock(module), "running_mean", None) is None:
            return ()
        return tuple(split_of(module))
    return ()
