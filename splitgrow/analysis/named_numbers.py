"""Numbers that forward does not read, and that others do by their well-known names.

A loss, a metric or a loader asks a model for its number of classes or the size of its vocabulary:
``model.num_classes``, ``config.num_labels``, ``config.vocab_size``. They follow the width of the
output, or the rows of the embedding, whose length they are. Whoever puts another classifier in the
place of the first one asks for the width of the features that it reads: ``model.num_features``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from torch import nn

from splitgrow.analysis.channel_graph import ChannelGraph, HeldNumber, LayerNode
from splitgrow.analysis.channels.channel_axes import Axis, groups_of
from splitgrow.layers.block_numbers import CONFIGS

_CLASSES = frozenset(("num_labels", "num_classes", "n_classes", "nb_classes"))
_WORDS = frozenset(("vocab_size", "n_vocab", "num_tokens"))
_FEATURES = frozenset(("num_features", "head_hidden_size"))
_BESIDE = frozenset(("in_features", "embed_dim"))
"""Names that mean features only in a module that has a `num_features`, too."""
_CHANNELS = frozenset(("in_chans", "in_channels", "num_channels", "num_input_channels"))


def named_numbers(graph: ChannelGraph, modules: Mapping[str, nn.Module]) -> Iterator[HeldNumber]:
    """The numbers of that kind that can follow a width."""
    results = [axes[-1] for axes in (*graph.outputs, *graph.training_outputs) if axes]
    classified = False
    tables = [node.ins for node in graph.nodes.values() if node.looks_up]
    for path, attribute, value in _held(modules, _CLASSES | _WORDS):
        name = attribute.rpartition(".")[2]
        of_classes = name in _CLASSES
        axes: Sequence[Axis] = results if of_classes else [*results, *tables]
        followed = _axis_of(value, axes, graph)
        if followed is not None:
            yield HeldNumber(path, attribute, followed)
        classified |= of_classes and any(graph.groups.length(axis) == value for axis in results)
    yield from _numbers_of_features(graph, modules, results, classified=classified)


def _axis_of(value: int, axes: Iterable[Axis], graph: ChannelGraph) -> Axis | None:
    """The first axis of a length, if it can grow."""
    axis = next((axis for axis in axes if graph.groups.length(axis) == value), None)
    return axis if axis is not None and graph.groups.can_grow(axis) else None


def _numbers_of_features(
    graph: ChannelGraph,
    modules: Mapping[str, nn.Module],
    results: Sequence[Axis],
    *,
    classified: bool,
) -> Iterator[HeldNumber]:
    """The widths of the features that a classifier reads, as the modules around it hold them.

    Args:
        graph: The graph.
        modules: The modules by path.
        results: The axes of the outputs.
        classified: Whether the outputs are classes; without a classifier they are the features.
    """
    around: dict[str, list[Axis]] = {}
    for axis in results:
        for writer in _writers(axis, graph) if classified else [None]:
            parts = writer.name.split(".")[:-1] if writer is not None else []
            for depth in range(len(parts) + 1):
                axes = around.setdefault(".".join(parts[:depth]), [])
                axes.extend(_read_by(writer, graph) if writer is not None else [axis])
    for path, axes in around.items():
        held = {name: value for _, name, value in _held({path: modules[path]}, _FEATURES | _BESIDE)}
        for name, value in held.items():
            followed = _axis_of(value, axes, graph)
            if followed is not None and (name in _FEATURES or "num_features" in held):
                yield HeldNumber(path, name, followed)


def _writers(axis: Axis, graph: ChannelGraph) -> list[LayerNode]:
    """The layers of whose units an axis consists."""
    groups = set(groups_of(graph.groups.resolve(axis)))
    sized = (node for node in graph.nodes.values() if node.sized)
    return [n for n in sized if groups & set(groups_of(graph.groups.resolve(n.outs)))]


def _read_by(layer: LayerNode, graph: ChannelGraph) -> Iterator[Axis]:
    """The axes of features in front of a layer, the nearest first, up to a sum of several."""
    seen: set[str] = set()
    while layer.name not in seen:
        seen.add(layer.name)
        yield layer.ins
        writers = _writers(layer.ins, graph)
        yield from (writer.outs for writer in writers)
        if len(writers) == 1:
            (layer,) = writers


def numbers_of_input(modules: Mapping[str, nn.Module], width: int) -> Iterator[tuple[str, str]]:
    """The numbers that tell others how many channels the model's input has.

    Args:
        modules: The modules that may hold them, by path.
        width: The number of channels.

    Yields:
        The path of the module, and the attribute's name.
    """
    for path, attribute, value in _held(modules, _CHANNELS):
        if value == width:
            yield path, attribute


def _held(modules: Mapping[str, nn.Module], names: Set[str]) -> Iterator[tuple[str, str, int]]:
    """Modules' numbers of these names, and those in configurations, each of these once."""
    seen: set[int] = set()
    for path, module in modules.items():
        own = vars(module)
        for name in sorted(names & own.keys()):
            if type(own[name]) is int:
                yield path, name, own[name]
        for key in CONFIGS:
            config: Any = own.get(key)
            if not hasattr(config, "__dict__") or id(config) in seen:
                continue
            seen.add(id(config))
            for name in sorted(names):
                value = getattr(config, name, None)
                if type(value) is int:
                    yield path, f"{key}.{name}", value
