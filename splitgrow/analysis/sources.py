"""The values that no op made, as axes: inputs, the model's tensors, the numbers that it holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.analysis.channels.channel_axes import Axis
from splitgrow.analysis.held_tensors import HeldTensors
from splitgrow.analysis.layer_calls import LayerNumbers
from splitgrow.analysis.ops import Shaped
from splitgrow.analysis.ops.op import constant_like, shaped_in
from splitgrow.analysis.trace import Source, Step
from splitgrow.analysis.unsupported_layers import refusals, subclass_refusal
from splitgrow.layers.split_layer import SplitLayer, stock
from splitgrow.layers.types import layer_type_of, sized_layers


class Sources:
    """The sources of a model's traces, and the channel graph to which their axes belong.

    Attributes:
        modules: The model's modules by path.
        graph: The channel graph.
        groups: Its store of groups.
        refusals: Why layers cannot grow in any graph.
        held_tensors: The tensors of modules that could grow.
        layer_numbers: The numbers of layers that forward reads.
        values: The results of the rules for each step, by trace.
        numbers: The axes of the numbers that modules hold.
        tensors: The paths of the tensors of this trace, by step.
        free_axes: The axes of the input that may become wider.

    Args:
        model: The model.
        free_input: The name of an input that may become wider; None for none.
    """

    def __init__(self, model: nn.Module, free_input: str | None) -> None:
        self.modules = dict(model.named_modules())
        self.graph = ChannelGraph()
        self.groups = self.graph.groups
        self.refusals = refusals(self.modules)
        self.held_tensors = HeldTensors(self.modules, self.graph)
        self.layer_numbers = LayerNumbers(self.graph, self.modules, self.refusals)
        self.values: list[list[Any]] = []
        self.numbers: dict[tuple[str, str], Axis] = {}
        self.tensors: dict[int, str] = {}
        self.free_axes: tuple[Axis, ...] = ()
        self._free_input = free_input

    def _source(self, step: Step, values: Sequence[Any]) -> Any:
        if step.target is Source.INPUT:
            if step.args[0] == self._free_input and not self.free_axes:
                self.free_axes = tuple(self.groups.new(int(size)) for size in step.example.shape)
                return Shaped(self.free_axes)
            reason = f"it is tied to the model's input `{step.args[0]}`"
            return constant_like(step.example, reason)
        if step.target is Source.NUMBER:
            name, key = step.args
            if layer_type_of(stock(self.modules[name])) is not None:
                return self.layer_numbers.read(name, key, step)
            if (name, key) not in self.numbers:
                self.numbers[name, key] = self.groups.new_number(step.example)
            return self.groups.size(self.numbers[name, key])
        if step.target is Source.UNSEEN:
            reason = f"something that splitgrow cannot see made a tensor, before {step.place}"
            for shaped in shaped_in((self.values, values)):
                for axis in shaped.axes:
                    self.groups.fix(axis, reason)
            return constant_like(step.example, reason)
        (path,) = step.args
        name, parametrization, _ = path.partition(".parametrizations.")
        owner = self.modules.get(name if parametrization else path.rpartition(".")[0])
        unknown = isinstance(owner, sized_layers()) and layer_type_of(owner) is None
        # A table of a class of its own is read by an op, in whichever way that is written.
        if unknown and (parametrization or not isinstance(owner, nn.Embedding)):
            return self._fixed_tensor(step, owner)
        found = self.held_tensors.source(path, len(values), step.example)
        return self._fixed_tensor(step, owner if unknown else None) if found is None else found

    def _fixed_tensor(self, step: Step, owner: nn.Module | None) -> Any:
        """A tensor that cannot grow: a layer's, one in a plain attribute, or of whole numbers."""
        (path,) = step.args
        if owner is not None:
            root = self.refusals.get("", "") if owner is self.modules[""] else ""
            return constant_like(step.example, root or subclass_refusal(owner))
        what = f"the tensor `{path}`" if path else "a tensor that is not the model's"
        return constant_like(step.example, f"it is tied to {what}, which does not grow")

    def _note_direct_use(self, path: str, step: Step) -> None:
        """Refuses a layer whose tensor forward uses outside of the layer's own call."""
        owner, _, name = path.rpartition(".")
        while True:
            parent, _, block = owner.rpartition(".")
            if not (block.isdigit() and isinstance(self.modules.get(parent), SplitLayer)):
                break
            owner = parent
        reason = f"forward uses its `{name}` directly, at {step.place}"
        known = layer_type_of(stock(self.modules[owner])) if owner in self.modules else None
        if known is not None:
            self.graph.touched.add(owner)
        if known is not None and owner not in self.refusals:
            self.refusals[owner] = reason
            if owner in self.graph.nodes:
                self._fix_node(self.graph.nodes[owner], reason)

    def _fix_node(self, node: LayerNode, reason: str) -> None:
        self.groups.fix(node.ins, reason)
        self.groups.fix(node.outs, reason)
