"""Numbers that forward does not read, and that others do by their well-known names.

A loss, a metric or a loader asks a model for its number of classes or the size of its vocabulary:
``model.num_classes``, ``config.num_labels``, ``config.vocab_size``. They follow the width of the
output, or the rows of the embedding, whose length they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

from torch import nn

from splitgrow.analysis.channel_graph import ChannelGraph, HeldNumber
from splitgrow.analysis.channels.channel_axes import Axis
from splitgrow.layers.block_numbers import CONFIGS

_CLASSES = frozenset(("num_labels", "num_classes", "n_classes", "nb_classes"))
_WORDS = frozenset(("vocab_size", "n_vocab", "num_tokens"))
_CHANNELS = frozenset(("in_chans", "in_channels", "num_channels", "num_input_channels"))


def named_numbers(graph: ChannelGraph, modules: Mapping[str, nn.Module]) -> Iterator[HeldNumber]:
    """The numbers of that kind that can follow a width."""
    results = [axes[-1] for axes in (*graph.outputs, *graph.training_outputs) if axes]
    tables = [node.ins for node in graph.nodes.values() if node.looks_up]
    for path, attribute, value in _held(modules, _CLASSES | _WORDS):
        name = attribute.rpartition(".")[2]
        axes: Sequence[Axis] = results if name in _CLASSES else [*results, *tables]
        for axis in axes:
            if graph.groups.length(axis) == value and graph.groups.can_grow(axis):
                yield HeldNumber(path, attribute, axis)
                break


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
