"""From a model to its channel graph: each op's rule, run once over the traced forward.

Also finds the layers that cannot grow whatever the graph says: those whose weights are shared, used
directly, or computed by something else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from splitgrow.axes import Axis, constant, scaled
from splitgrow.graph import ChannelGraph, LayerNode
from splitgrow.kinds import LayerKind, kind_of, sized_layers
from splitgrow.rules import Op, Shaped, result_of
from splitgrow.rules.registry import constant_like, fix_arguments
from splitgrow.split import SplitLayer, stock
from splitgrow.tracing import trace


def analyse(model: nn.Module, inputs: tuple[Any, ...]) -> ChannelGraph:
    """The channel graph of a model.

    Args:
        model: Any module that torch.fx can follow. It is not changed.
        inputs: The positional arguments of an example call.

    Raises:
        TraceError: If the model's forward cannot be followed.
        ValueError: If the inputs do not fit.
    """
    analysis = _Analysis(model)
    for graph in trace(model, inputs):
        analysis.run(graph)
    return analysis.finish()


class _Analysis:
    """One pass over a model's traced forwards."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.modules = dict(model.named_modules())
        self.graph = ChannelGraph()
        self.groups = self.graph.groups
        self.refusals = _refusals(model)
        names = {id(module): name for name, module in self.modules.items()}
        for name, module in model.named_modules(remove_duplicate=False):
            self.graph.aliases[name] = names[id(module)]

    def run(self, graph: fx.Graph) -> None:
        """Follows the channels through one traced forward."""
        values: dict[fx.Node, Any] = {}
        for node in graph.nodes:
            values[node] = self._value(node, values)

    def _value(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        example = node.meta["example"]
        if node.op == "placeholder":
            return self._outside(example, f"it is tied to the model's input `{node.target}`")
        if node.op == "get_attr":
            return self._attribute(node, example)
        args = fx.map_arg(node.args, values.__getitem__)
        kwargs = fx.map_arg(node.kwargs, values.__getitem__)
        if node.op == "output":
            self._output(args[0])
            return None
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        layer = stock(module) if module is not None else None
        target = type(layer) if layer is not None else node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        place = node.meta["place"]
        op = Op(name, place, target, args, kwargs, example, self.groups, layer)
        if layer is None:
            return result_of(op)
        kind = kind_of(layer)
        if kind is None and not isinstance(layer, sized_layers()):
            return result_of(op)
        return self._layer(op, str(node.target), kind)

    def _outside(self, example: Any, reason: str) -> Any:
        """Tensors that come from outside, whose sizes are given."""
        return pytree.tree_map(lambda leaf: constant_like(leaf, reason), example)

    def _attribute(self, node: fx.Node, example: Any) -> Any:
        path = str(node.target)
        owner, _, name = path.rpartition(".")
        facts = ("dtype", "device", "ndim", "requires_grad")
        harmless = all(user.target is getattr and user.args[1] in facts for user in node.users)
        if not harmless and owner in self.modules:
            reason = f"forward uses its `{name}` directly, at {node.meta['place']}"
            self.refusals.setdefault(owner, reason)
            if owner in self.graph.nodes:
                self._fix_node(self.graph.nodes[owner], reason)
        return self._outside(example, f"it is tied to the tensor `{path}`, which does not grow")

    def _fix_node(self, node: LayerNode, reason: str) -> None:
        self.groups.fix(node.ins, reason)
        self.groups.fix(node.outs, reason)

    def _output(self, value: Any) -> None:
        is_value = lambda leaf: isinstance(leaf, Shaped)  # noqa: E731
        for leaf in pytree.tree_leaves(value, is_leaf=is_value):
            if isinstance(leaf, Shaped):
                for axis in leaf.axes:
                    self.groups.fix(
                        self.groups.resolve(axis)[:-1],
                        "it lies before other channels of the model's output, which would move",
                    )

    def _layer(self, op: Op, name: str, kind: LayerKind | None) -> Any:
        module = self.modules[name]
        if kind is None:
            base = next(layer for layer in sized_layers() if isinstance(module, layer))
            self.refusals.setdefault(name, _subclass_refusal(module, base))
            fix_arguments(op, self.refusals[name])
            self._add_unfollowed(name, module, self.refusals[name])
            return op.constants(self.refusals[name])
        dim = kind.channel_dim(op.module) if op.module is not None else 0
        if not -len(op.x.axes) <= dim < len(op.x.axes):
            text = "is given a tensor of too few dimensions"
            fix_arguments(op, text)
            return op.constants(text)
        dim %= len(op.x.axes)
        axis = op.x.axes[dim]
        if name in self.graph.nodes:
            node = self.graph.nodes[name]
            self.groups.tie(node.ins, axis, f"`{name}` reads it and {op.place} reads another")
        else:
            node = self._new_node(op, name, kind, axis)
        others = op.x.axes[:dim] + op.x.axes[dim + 1 :]
        if kind.mixes:
            for other in others:
                op.fix(other, "works along it as if it were space")
            shape = op.example.shape
            axes = [constant(int(size)) for size in shape]
        else:
            axes = list(op.x.axes)
        axes[dim] = self.groups.resolve(node.outs)
        return Shaped(tuple(axes))

    def _new_node(self, op: Op, name: str, kind: LayerKind, axis: Axis) -> LayerNode:
        module, groups = op.module, self.groups
        owner = self.modules[name]
        sizes = owner.sizes() if isinstance(owner, SplitLayer) else kind.sizes(module)
        assert module is not None
        refusal = self.refusals.get(name, "") or kind.refusal(module)
        if kind.diagonal(module):
            reason = op.reason("treats channels in whole groups")
            groups.bundle(axis, kind.bundle(module), reason)
            outs = scaled(axis, sizes[1] // sizes[0])
        else:
            outs = groups.new(sizes[1])
            for side in (axis, outs):
                groups.sections(side, kind.sections(module), op.reason("has groups"))
        node = self._add(name, self.modules[name], axis, outs)
        if refusal:
            self._fix_node(node, f"`{name}`: {refusal}")
        return node

    def _add(self, name: str, module: nn.Module, ins: Axis, outs: Axis) -> LayerNode:
        layer = stock(module)
        sized = isinstance(layer, sized_layers())
        self.graph.nodes[name] = LayerNode(name, type(layer).__name__, sized, ins, outs)
        return self.graph.nodes[name]

    def _add_unfollowed(self, name: str, module: nn.Module, reason: str) -> None:
        outs = constant(1, f"`{name}`: {reason}")
        self.graph.nodes[name] = replace(self._add(name, module, constant(1), outs), followed=False)

    def finish(self) -> ChannelGraph:
        """Adds the layers that forward did not call, which cannot grow."""
        whole = tuple(
            f"{name}."
            for name, module in self.modules.items()
            if isinstance(module, SplitLayer) or name in self.graph.nodes
        )
        for name, module in self.modules.items():
            if name in self.graph.nodes or not isinstance(stock(module), sized_layers()):
                continue
            if name.startswith(whole):
                continue  # a block of a split layer
            reason = self.refusals.get(name) or (
                "forward does not call it as a layer of its own on the example inputs"
            )
            self._add_unfollowed(name, module, reason)
        return self.graph


def _subclass_refusal(module: nn.Module, base: type[nn.Module]) -> str:
    if "Parametrized" in type(module).__name__:
        return (
            "it is parametrized; remove the parametrization "
            "(torch.nn.utils.parametrize.remove_parametrizations), grow, and apply it again"
        )
    return f"{type(module).__name__} is a subclass of {base.__name__} that splitgrow does not know"


def _refusals(model: nn.Module) -> dict[str, str]:
    """Layers that cannot grow whatever the graph says: shared weights, stray references."""
    refusals: dict[str, str] = {}
    owners: dict[int, tuple[str, str]] = {}
    for name, module in model.named_modules():
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in owners:
                other, other_key = owners[id(parameter)]
                refusals[name] = f"its `{key}` is tied to `{other}.{other_key}`"
                refusals[other] = f"its `{other_key}` is tied to `{name}.{key}`"
            owners[id(parameter)] = (name, key)
    names = {id(module): name for name, module in model.named_modules()}
    for holder, attribute, module in _stray_references(model):
        refusals.setdefault(
            names[id(module)],
            f"`{holder or 'the model'}` also holds it in the plain attribute `{attribute}`, where "
            f"growth could not replace it; use nn.ModuleList or nn.ModuleDict there",
        )
    if kind_of(model) is not None or isinstance(model, sized_layers()):
        refusals[""] = "the model is itself one layer; put it into an nn.Sequential"
    return refusals


def _stray_references(model: nn.Module) -> Iterator[tuple[str, str, nn.Module]]:
    """Modules of the model that some module also holds outside its registered children."""
    known = {id(module) for module in model.modules()}
    for holder, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or not isinstance(value, (list, tuple, dict, nn.Module)):
                continue
            items = value.values() if isinstance(value, dict) else value
            for item in (items,) if isinstance(items, nn.Module) else tuple(items):
                if isinstance(item, nn.Module) and id(item) in known:
                    yield holder, attribute, item
