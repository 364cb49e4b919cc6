"""Growing a vocabulary: rows of an embedding, and the units of the head that scores them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.analysis.channels.channel_axes import groups_of
from splitgrow.errors import FixedWidthError
from splitgrow.growth.apply import apply_
from splitgrow.growth.edits import Edit
from splitgrow.growth.growth_options import GrowthOptions
from splitgrow.growth.history import History, check_structure
from splitgrow.growth.planning import find_node, make_plan
from splitgrow.utils.rollback import Undo


def expand_vocabulary_(  # noqa: PLR0913
    undo: Undo,
    model: nn.Module,
    history: History,
    n: int,
    *,
    embedding: int | str | None,
    head: int | str | None,
    round_to: int,
    freeze: bool,
    options: GrowthOptions,
    optimizer: list[Optimizer],
) -> Edit:
    """Adds rows to an embedding: plans the edit, then applies it.

    Raises:
        TypeError: If n or round_to is not an int.
        ValueError: If one is not positive, or a layer does not exist or fit.
        FixedWidthError: If the vocabulary cannot grow.
    """
    for name, number in (("n", n), ("round_to", round_to)):
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} (={number!r}) must be an int")
        if number < 1:
            raise ValueError(f"{name} (={number}) must be at least 1")
    check_structure(model, history)
    graph = history.graph
    table = _table(model, graph, embedding)
    rows = graph.groups.length(table.ins)
    n += -(rows + n) % round_to
    groups = _groups(graph, table, "ins")
    scored = _head(model, graph, table, head)
    if scored is not None:
        groups |= _groups(graph, scored, "outs")
    names = dict.fromkeys(node.name for node in (table, scored) if node is not None)
    opened = history.next_edit(freeze=freeze)
    edit = make_plan(
        graph,
        history.modules,
        dict.fromkeys(sorted(groups), n),
        history.edits,
        opened,
        request=dict.fromkeys(names, n),
    )
    return apply_(undo, model, history, edit, options, optimizer)


def _groups(graph: ChannelGraph, node: LayerNode, side: str) -> set[int]:
    """The group of a layer's rows or units, which must all be one that can grow.

    Raises:
        FixedWidthError: If they cannot grow.
    """
    axis = graph.groups.resolve(getattr(node, side))
    groups = groups_of(axis)
    if len(axis) == 1 and len(groups) == 1 and not graph.groups.is_fixed(groups[0]):
        return set(groups)
    reasons = "; ".join(graph.groups.reasons(axis)) or "it is made of several parts"
    raise FixedWidthError(f"the vocabulary of `{node.name}` cannot grow: {reasons}")


def _table(model: nn.Module, graph: ChannelGraph, asked: int | str | None) -> LayerNode:
    """The embedding whose rows are the vocabulary.

    Raises:
        ValueError: If there is none, or it cannot be told which.
        TypeError: If `asked` is neither an index nor a name.
    """
    tables = [node for node in graph.nodes.values() if node.looks_up and node.ins]
    names = ", ".join(repr(node.name) for node in tables)
    if asked is not None:
        found = find_node(graph, asked)
        if found not in tables:
            raise ValueError(f"`{found.name}` is no embedding; there are {names or 'none'}")
        return found
    if not tables:
        raise ValueError("the model has no embedding that forward calls, so it has no vocabulary")
    said = _said_by(model, graph, "get_input_embeddings")
    scored = {path for holders in graph.ties for path, _ in holders}
    choices = [
        [node for node in tables if node.name == said],
        [node for node in tables if node.name in scored],
        tables,
    ]
    for choice in choices:
        if len({tuple(graph.groups.resolve(node.ins)) for node in choice}) == 1:
            return choice[0]
    raise ValueError(f"the model has several embeddings; name one by `embedding`: {names}")


def _head(
    model: nn.Module, graph: ChannelGraph, table: LayerNode, asked: int | str | None
) -> LayerNode | None:
    """The layer that makes a score for each row; None if there is none.

    Raises:
        ValueError: If the layer that is asked for has another number of units.
        TypeError: If `asked` is neither an index nor a name.
    """
    rows = graph.groups.length(table.ins)
    if asked is not None:
        found = find_node(graph, asked)
        if graph.groups.length(found.outs) != rows:
            units = graph.groups.length(found.outs)
            raise ValueError(f"`{found.name}` has {units} units, and `{table.name}` {rows} rows")
        return found
    said = graph.nodes.get(_said_by(model, graph, "get_output_embeddings"))
    if said is not None and graph.groups.length(said.outs) == rows:
        return said
    returned = (*graph.outputs, *graph.training_outputs)
    made = {graph.groups.resolve(axis) for axes in returned for axis in axes[-1:]}
    heads = [
        node
        for node in graph.sized()
        if not node.looks_up
        and graph.groups.length(node.outs) == rows
        and graph.groups.resolve(node.outs) in made
    ]
    return heads[0] if len(heads) == 1 else None


def _said_by(model: nn.Module, graph: ChannelGraph, method: str) -> str:
    """The path of the layer that a method of the model names, as those of transformers do."""
    ask: Callable[[], Any] | None = getattr(model, method, None)
    try:
        said = ask() if callable(ask) else None
    except Exception:  # noqa: BLE001 - it may raise anything where there is none
        return ""
    paths = {id(module): name for name, module in model.named_modules()}
    return graph.aliases.get(paths.get(id(said), ""), "") if said is not None else ""
