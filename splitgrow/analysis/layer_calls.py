"""Calls of layers that take or return several tensors, and numbers of layers that forward reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.analysis.channels.channel_axes import Axis, Size, constant
from splitgrow.analysis.ops.op import Op, Shaped, constant_like
from splitgrow.analysis.ops.registry import fix_arguments
from splitgrow.analysis.trace import Step
from splitgrow.layers.split_layer import stock
from splitgrow.layers.types import Nested, Signature, known_layer_type


def follow_call(op: Op, signature: Signature, node_of: Callable[[Axis], LayerNode]) -> Any:
    """The axes of all that a layer returns.

    Args:
        op: The call.
        signature: The tensors that it takes and returns.
        node_of: Gives the layer's node, for the axis of its input channels.
    """
    x = op.args[0] if op.args else op.kwargs.get("input")
    x = x[0] if isinstance(x, tuple) else x  # a PackedSequence begins with its data
    given = op.args[1] if len(op.args) > 1 else op.kwargs.get(signature.name)
    states = _pairs(given, signature.states)
    if not isinstance(x, Shaped) or states is None or not _fits(op.example, signature.results):
        text = "takes or returns something else than torch's own layer of the kind"
        fix_arguments(op, text)
        return op.constants(text)
    node = node_of(x.axes[-1])
    _fix_others(op, x)
    for state, copies in states:
        _fix_others(op, state)
        if copies:
            reason = op.reason(
                "starts from a state whose width is written down or does not grow (leave the state "
                "out, or make it of the layer's hidden_size)"
            )
            op.groups.tie(state.axes[-1], node.outs * copies, reason)
        else:
            op.fix(state.axes[-1], "starts from it a state whose width does not grow")
    return _made(op.example, signature.results, op.groups.resolve(node.outs))


def _fix_others(op: Op, shaped: Shaped) -> None:
    for axis in shaped.axes[:-1]:
        op.fix(axis, "works along it as if it were time")


def _pairs(given: Any, signature: Nested) -> list[tuple[Shaped, int]] | None:
    """The tensors among nested values, each with its number; None if they are others."""
    if given is None:
        return []
    if isinstance(given, Shaped) and isinstance(signature, int):
        return [(given, signature)]
    if not isinstance(given, (tuple, list)) or isinstance(signature, int):
        return None
    found = [_pairs(*pair) for pair in zip(given, signature, strict=False)]
    if None in found or len(given) != len(signature):
        return None
    return [pair for pairs in found if pairs for pair in pairs]


def _fits(example: Any, signature: Nested) -> bool:
    """Whether results have the nesting of a signature."""
    if not isinstance(signature, tuple):
        packed = isinstance(example, tuple) and bool(example)  # it begins with its data
        return isinstance(example[0] if packed else example, Tensor)
    nested = isinstance(example, (tuple, list)) and len(example) == len(signature)
    return nested and all(_fits(*pair) for pair in zip(example, signature, strict=True))


def _made(example: Any, signature: Nested, outs: Axis) -> Any:
    if isinstance(signature, tuple):
        return tuple(_made(*pair, outs) for pair in zip(example, signature, strict=True))
    if isinstance(example, tuple):  # a PackedSequence
        rest = (constant_like(each, "") for each in example[1:])
        return (_made(example[0], signature, outs), *rest)
    assert isinstance(example, Tensor)
    *others, width = (int(size) for size in example.shape)
    return Shaped((*map(constant, others), outs * signature or constant(width)))


class LayerNumbers:
    """The numbers that layers have by their sizes, where forward reads them.

    Args:
        graph: The channel graph.
        modules: The model's modules by path.
        refusals: Learns why layers cannot grow.
    """

    def __init__(
        self, graph: ChannelGraph, modules: Mapping[str, nn.Module], refusals: dict[str, str]
    ) -> None:
        self._graph, self._modules, self._refusals = graph, modules, refusals
        self._early: dict[str, list[tuple[str, Axis, str]]] = {}

    def read(self, name: str, key: str, step: Step) -> Size:
        """A number that forward reads from a layer: a channel number follows the layer's width."""
        layer = stock(self._modules[name])
        side = known_layer_type(layer).side_of(layer, key)
        if side == "":
            return Size(step.example)
        node = self._graph.nodes.get(name)
        why = f"forward reads its `{key}`, at {step.place}"
        groups = self._graph.groups
        if node is None and side is not None:  # the layer has not run yet
            axis = groups.new_number(step.example)
            self._early.setdefault(name, []).append((key, axis, why))
            return groups.size(axis)
        if node is not None and side is not None:
            axis = node.ins if side == "in" else node.outs
            if groups.length(axis) == step.example:
                return groups.size(axis)
            self._fix(node, why)
        elif node is not None:
            self._fix(node, why)
        self._refusals.setdefault(name, why)
        return Size(step.example)

    def met(self, node: LayerNode) -> None:
        """Ties the numbers that were read before a layer's first call to its widths."""
        groups = self._graph.groups
        layer = stock(self._modules[node.name])
        for key, number, why in self._early.pop(node.name, ()):
            side = known_layer_type(layer).side_of(layer, key)
            axis = node.ins if side == "in" else node.outs
            if groups.length(axis) == groups.length(number):
                groups.tie(axis, number, why)
            else:
                groups.fix(number, why)
                self._fix(node, why)

    def settle(self) -> None:
        """Fixes the numbers of layers that forward did not call."""
        for name, numbers in self._early.items():
            for _, number, why in numbers:
                self._graph.groups.fix(number, why)
                self._refusals.setdefault(name, why)

    def _fix(self, node: LayerNode, why: str) -> None:
        self._graph.groups.fix(node.ins, why)
        self._graph.groups.fix(node.outs, why)
