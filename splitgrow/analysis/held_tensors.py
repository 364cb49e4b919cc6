"""Parameters and buffers of modules that lie along channels, and so can grow as layers do.

Each dimension of such a tensor is a group of its own until ops tie it to channels. A product sums
over one dimension of a matrix: new entries there start as zeros, as a layer's helper does. So that
dimension may grow too, if all that forward does with the matrix is such products.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.analysis.channel_graph import ChannelGraph, LayerNode
from splitgrow.analysis.channels.channel_axes import Axis, Size, constant
from splitgrow.analysis.leaf_modules import is_leaf
from splitgrow.analysis.ops import Op, Shaped, facts_of
from splitgrow.analysis.ops.facts import Arithmetic, Values
from splitgrow.analysis.ops.op import NO_DIM, Origin, shaped_in
from splitgrow.analysis.trace import Step, mapped, refs_of
from splitgrow.layers.expert_sets import ExpertSet
from splitgrow.layers.insertion_wrapper import InsertionWrapper
from splitgrow.layers.tensor_holder import SplitTensor, blocks_path, holder_class, made_here
from splitgrow.layers.types import TensorBlock, TensorUse

_SCALING = (Arithmetic.MULTIPLIES, Arithmetic.DIVIDES)
_TURNS = frozenset(("t", "T", "mT", "transpose", "swapaxes", "swapdims", "permute", "movedim"))
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class HeldTensors:
    """The tensors of a model's modules that could grow, with all that the traces show of them.

    Args:
        modules: The model's modules by path.
        graph: The channel graph, which gets a node for each tensor in the end.
    """

    def __init__(self, modules: Mapping[str, nn.Module], graph: ChannelGraph) -> None:
        self._modules, self._graph, self._groups = modules, graph, graph.groups
        self._names = _names_of_tensors(modules)
        self._axes: dict[str, tuple[Axis, ...]] = {}
        self._uses: Counter[str] = Counter()
        self._scaling: Counter[str] = Counter()
        self._summed: Counter[tuple[str, int]] = Counter()
        self._of_step: dict[int, str] = {}
        self._given: set[int] = set()
        """The steps whose values depend on the inputs of this trace."""
        self._reasons: dict[str, str] = {}
        self._met: dict[str, int] = {}
        """The number of layers that were met before each tensor."""

    def begin(self, reasons: Mapping[str, str], inputs: Iterable[int]) -> None:
        """Turns to another trace.

        Args:
            reasons: Why tensors cannot grow, as its run showed.
            inputs: The numbers of the steps that are inputs of the model, or unseen.
        """
        self._of_step, self._given = {}, {*inputs}
        self._reasons = {**reasons, **self._reasons}

    def source(self, path: str, index: int, example: Tensor) -> Shaped | None:
        """The axes of a tensor that forward reads; None if it is none that could grow."""
        if path not in self._axes:
            if self._tensor(path) is None:
                return None
            sizes = [int(size) for size in example.shape]
            self._axes[path] = tuple(
                self._groups.new(size) if size > 1 else constant(size) for size in sizes
            )
        axes = tuple(self._groups.resolve(axis) for axis in self._axes[path])
        self._of_step[index] = path
        self._met.setdefault(path, len(self._graph.nodes))
        return Shaped(axes, Origin(path, tuple(range(len(axes)))))

    def _tensor(self, path: str) -> Tensor | None:
        """The tensor of a path, if it is one of a module that is looked into, and has channels."""
        grown = self._modules.get(blocks_path(path))
        if isinstance(grown, SplitTensor):
            found: Any = grown.original.value
        else:
            parent, _, key = path.rpartition(".")
            holder = self._modules.get(parent)
            if holder is None or is_leaf(holder):
                return None
            found = holder._parameters.get(key)  # noqa: SLF001
            found = holder._buffers.get(key) if found is None else found  # noqa: SLF001
        if found is None or not (found.is_floating_point() or found.is_complex()):
            return None
        return found  # type: ignore[no-any-return]

    def summed(self, origin: Origin, dim: int) -> bool:
        """Notes that a product sums over a dimension of a matrix; whether that may grow."""
        path = origin.path
        found = self._tensor(path)
        if not isinstance(found, nn.Parameter) or origin.dims[dim] == NO_DIM:
            return False
        self._summed[path, origin.dims[dim]] += 1
        return True

    def seen(self, op: Op, step: Step, index: int, result: Any) -> Any:
        """Notes the tensors that an op uses; returns its result, which may be such a tensor.

        Args:
            op: The op.
            step: Its step.
            index: The number of the step.
            result: Its result.
        """
        refs = list(refs_of(step))
        if any(ref.step in self._given for ref in refs):
            self._given.add(index)
        paths = [self._of_step[ref.step] for ref in refs if ref.step in self._of_step]
        results = list(shaped_in(result))
        if not paths or not results:  # a question for a size is no use
            return result
        if isinstance(result, Shaped) and result.origin is not None:  # a part of one
            self._of_step[index] = result.origin.path
            return result
        facts = facts_of(op.target)
        moves = facts.values in (Values.KEPT, Values.MOVED) or _turned(op) is not None
        if moves and len({*paths}) == 1 and len([*op.shaped()]) == len(paths):
            self._of_step[index] = paths[0]
            return _with_origin(op, result, kept=facts.values is Values.KEPT)
        self._uses.update(paths)
        if facts.arithmetic in _SCALING and any(ref.step in self._given for ref in refs):
            self._scaling.update(paths)
        return result

    def tie_sets(self) -> None:
        """Ties the tensors of further experts to those of the first ones, which they join."""
        for parent, module in self._modules.items():
            for name, child in module.named_children():
                path = f"{parent}.{name}".removeprefix(".")
                for one, further in _further_experts(child):
                    for key in one.tensors:
                        self._tie(f"{path}.{key}", f"{path}.{further}.{key}")

    def _tie(self, path: str, other: str) -> None:
        ours, theirs = self._axes.get(path), self._axes.get(other)
        if ours is None and theirs is None:
            return
        for one, two in zip(ours or theirs or (), theirs or ours or (), strict=True):
            reason = f"`{other}` has further experts beside those of `{path}`"
            if ours is None or theirs is None:
                self._groups.fix(one, f"{reason}, and forward uses only one of them")
            elif self._groups.length(one) == self._groups.length(two):
                self._groups.tie(one, two, reason)

    # -- in the end -------------------------------------------------------------------------------

    def settle(self) -> None:
        """Adds the tensors to the graph, and fixes the dimensions along which they cannot grow."""
        for path, axes in self._axes.items():
            if not any(map(self._groups.can_grow, axes)):
                continue
            reason = self._refusal(path)
            if reason:
                for axis in axes:
                    self._groups.fix(axis, f"it is tied to the tensor `{path}`, {reason}")
                continue
            self._add(path, axes)
        self._in_order()

    def _refusal(self, path: str) -> str:
        """Why a tensor cannot grow in any dimension; empty if it can."""
        if path in self._reasons:
            return self._reasons[path]
        if isinstance(self._modules.get(blocks_path(path)), SplitTensor):
            return ""
        others = [name for name in self._names[id(self._tensor(path))] if name != path]
        if others:
            return f"which is also `{others[0]}`"
        parent, _, key = path.rpartition(".")
        return _refusal_of_holder(self._modules[parent], key)

    def _add(self, path: str, axes: tuple[Axis, ...]) -> None:
        free = [dim for dim, axis in enumerate(axes) if self._groups.can_grow(axis)]
        summed = [dim for dim in free if self._summed[path, dim]]
        only = len(summed) == 1 and self._summed[path, summed[0]] == self._uses[path]
        for dim in () if only else summed:
            self._fix(axes[dim], path, "which products sum over and which is also used otherwise")
        ins = summed[0] if only else None
        outs = self._chosen(path, axes, ins)
        role = "weighs" if only else "meets"
        if only and outs is None and len(axes) == 2:
            outs = 1 - summed[0]  # as a layer has its units, which may come to grow
        if not summed and self._scaling[path] == self._uses[path]:
            role = "scales"
        grown = self._modules.get(blocks_path(path))
        use = TensorUse(outs, ins, role)
        if isinstance(grown, SplitTensor):
            assert isinstance(grown.original, TensorBlock)
            use = self._as_grown(path, axes, use, grown.original.use)
        found = self._tensor(path)
        assert found is not None
        kind = "Parameter" if isinstance(found, nn.Parameter) else "Buffer"
        along = [() if dim is None else axes[dim] for dim in (use.ins, use.outs)]
        sized = use.role == "weighs" and self._makes_units(along[1])
        self._graph.nodes[path] = LayerNode(path, kind, sized, along[0], along[1], use=use)

    def _makes_units(self, outs: Axis) -> bool:
        """Whether no layer makes the units along a matrix, so that it is asked for their number."""
        growing = self._graph.growing_groups(outs)
        made = {g for n in self._graph.sized() for g in self._graph.growing_groups(n.outs)}
        return bool(growing) and made.isdisjoint(growing)

    def _in_order(self) -> None:
        """Puts tensors that are asked for their width among the layers, in order of execution."""
        nodes, at = self._graph.nodes, dict[int, list[str]]()
        for path in [path for path in self._met if path in nodes and nodes[path].sized]:
            at.setdefault(self._met[path], []).append(path)
        tensors = {path for paths in at.values() for path in paths}
        ordered: dict[str, LayerNode] = {}
        layers = [name for name in nodes if name not in tensors]
        for place, name in enumerate((*layers, "")):
            ordered.update((path, nodes[path]) for path in at.get(place, ()))
            if name:
                ordered[name] = nodes[name]
        if tensors:
            nodes.clear()
            nodes.update(ordered)

    def _chosen(self, path: str, axes: tuple[Axis, ...], ins: int | None) -> int | None:
        """The dimension along which a tensor may grow besides the one that products sum over."""
        graph, groups = self._graph, self._groups
        asked = {g for node in graph.sized() for g in graph.growing_groups(node.outs)}
        free = [dim for dim, axis in enumerate(axes) if dim != ins and groups.can_grow(axis)]
        first = [dim for dim in free if asked.intersection(graph.growing_groups(axes[dim]))]
        outs = next(iter((*first, *free)), None)
        for dim in free:
            if dim != outs:
                self._fix(axes[dim], path, f"whose dimension {outs} grows already")
        return outs

    def _as_grown(
        self, path: str, axes: tuple[Axis, ...], use: TensorUse, known: TensorUse
    ) -> TensorUse:
        """The use of a tensor that has grown: its blocks lie along the same dimensions."""
        for now, then in ((use.outs, known.outs), (use.ins, known.ins)):
            if now is not None and now != then:
                self._fix(axes[now], path, f"which has grown along dimension {then}")
        return known

    def _fix(self, axis: Axis, path: str, why: str) -> None:
        self._groups.fix(axis, f"it is tied to the tensor `{path}`, {why}")


def _further_experts(module: nn.Module) -> Iterator[tuple[ExpertSet, str]]:
    for item in module.inserted if isinstance(module, InsertionWrapper) else ():
        if item.experts is not None:
            yield item.experts, item.name


def _names_of_tensors(modules: Mapping[str, nn.Module]) -> dict[int, list[str]]:
    """All names of each tensor of the model, by its id."""
    found: dict[int, list[str]] = {}
    for path, module in modules.items():
        for store in (module._parameters, module._buffers):  # noqa: SLF001
            for key, tensor in store.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).append(f"{path}.{key}".removeprefix("."))
    return found


def _refusal_of_holder(holder: nn.Module, key: str) -> str:
    """Why a module cannot hold a tensor that grows; empty if it can."""
    cls = type(holder)
    if isinstance(holder, _CONTAINERS):
        return f"which a {cls.__name__} holds beside the layers that it goes through"
    if isinstance(holder, torch.jit.ScriptModule):
        return "which a scripted module holds"
    if inspect.getattr_static(cls, key, None) is not None and made_here(cls) is None:
        return f"whose name is that of an attribute of the class {cls.__name__}"
    if hasattr(holder, blocks_path(key)):
        return f"beside which there is something of the name `{blocks_path(key)}` already"
    try:
        holder_class(cls, key)
    except TypeError as error:
        return f"whose module's class cannot be subclassed ({error})"
    return ""


def _turned(op: Op) -> list[int] | None:
    """The dimensions of an op's first operand in the order of its result's, if it only turns it."""
    name = op.args[1] if op.name == "getattr" and len(op.args) == 2 else op.name
    if name not in _TURNS or not op.args or not isinstance(op.args[0], Shaped):
        return None
    probe = torch.empty([2] * len(op.args[0].axes), device="meta")
    found = getattr(probe, str(name))
    if callable(found):
        args, kwargs = mapped(op.args[1:], _number), mapped(dict(op.kwargs), _number)
        try:
            found = found(*args, **kwargs)
        except (TypeError, RuntimeError):  # it tells dimensions by their names
            return None
    strides = probe.stride()
    return [strides.index(stride) for stride in found.stride()]


def _number(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, Size) else leaf


def _with_origin(op: Op, result: Any, *, kept: bool) -> Any:
    """The result of an op that moves a tensor, with the tensor's dimensions if these are known."""
    first = next(iter(op.shaped()))
    turned = _turned(op)
    if not isinstance(result, Shaped) or first.origin is None or not (kept or turned):
        return result
    dims = first.origin.dims
    order = turned or range(len(dims))
    return replace(result, origin=Origin(first.origin.path, tuple(dims[dim] for dim in order)))
