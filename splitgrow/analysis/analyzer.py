"""From a model to its channel graph: each op's rule, run over the trace of forward.

Also finds the layers that cannot grow in any graph: those whose weights are shared, used directly,
or computed by other code.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from splitgrow.analysis.channel_graph import ChannelGraph, HeldNumber, LayerNode
from splitgrow.analysis.channels.channel_axes import Axis, constant, scaled
from splitgrow.analysis.channels.width_remainders import Remainders
from splitgrow.analysis.layer_calls import follow_call
from splitgrow.analysis.named_numbers import named_numbers
from splitgrow.analysis.number_choices import best_of
from splitgrow.analysis.ops import Op, Shaped, result_of
from splitgrow.analysis.ops.op import Choice, constant_like
from splitgrow.analysis.ops.registry import fix_arguments
from splitgrow.analysis.shape_queries import asks_about_shape, shape_only, unused
from splitgrow.analysis.sources import Sources
from splitgrow.analysis.start_readers import Couplings, TracedRun
from splitgrow.analysis.start_states import settle_starts
from splitgrow.analysis.ties import Ties
from splitgrow.analysis.trace import Ref, Source, Step, at_path, mapped
from splitgrow.analysis.tracer import Trace, trace_model
from splitgrow.analysis.training_flag import ModeIn, mode_in
from splitgrow.analysis.trial_runs import Trial, fix_what_widening_breaks, widens
from splitgrow.analysis.unsupported_layers import (
    emptiness,
    is_sized,
    refusal_of,
    subclass_refusal,
)
from splitgrow.errors import TraceError
from splitgrow.layers.split_layer import SplitLayer, stock
from splitgrow.layers.types import LayerType, layer_type_of
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.source_lines import levels_to_caller


def analyse(
    model: nn.Module, inputs: ExampleCall, known: ChannelGraph | None = None
) -> ChannelGraph:
    """The channel graph of a model.

    Args:
        model: Any module. It is not changed.
        inputs: The example call.
        known: Its graph before it changed, if it has one.

    Raises:
        TraceError: If the model's forward cannot be followed.
        ValueError: If the model does not run on the inputs.
    """
    followed = analyse_runs(model, inputs, known)
    try_evaluation(model, inputs, followed)
    return followed.graph


@dataclass(frozen=True)
class Followed:
    """A model's channel graph with the runs that it was made from.

    Attributes:
        graph: The channel graph.
        trials: The traces with the results of the rules, the one in evaluation mode first.
        outputs: The axes of the model's outputs.
        decides: Whether forward asked for values, so that other inputs may lead to other ops.
        asks: Whether the model's code names the mode, and yet ran the same ops in both, so that
            evaluation mode has to be tried at other widths, too.
    """

    graph: ChannelGraph
    trials: tuple[Trial, ...]
    outputs: tuple[Axis, ...]
    decides: bool
    asks: bool = False

    @property
    def one_trace(self) -> bool:
        """Whether one trace stands for both modes."""
        return len({id(trial.steps) for trial in self.trials}) < len(self.trials)


def try_evaluation(model: nn.Module, inputs: ExampleCall, followed: Followed) -> None:
    """Fixes what forward would not follow in evaluation mode, where that was left to be tried."""
    if followed.asks:
        fix_what_widening_breaks(model, inputs, followed.trials[0])


def analyse_runs(
    model: nn.Module, inputs: ExampleCall, known: ChannelGraph | None = None
) -> Followed:
    """The channel graph of a model, and the runs that led to it; `try_evaluation` is to follow.

    Raises:
        TraceError: If the model's forward cannot be followed.
        ValueError: If the model does not run on the inputs.
    """
    runs = [trace_model(model, inputs, training=False)]
    alike = known is not None and known.modes_alike
    told = ModeIn.NOWHERE if alike else mode_in(model)
    if runs[0].fake and told is not ModeIn.HIDDEN:
        best = _best(model, runs, known)
        trial = best.tried(runs)[0]
        asks = told is ModeIn.SHOWN
        if widens(model, inputs, trial, training=True):
            best.graph.modes_alike = alike or asks
            both = trial, replace(trial, training=True, strict=True)
            return best.finished(both, decides=False, asks=asks)
    try:
        runs.append(trace_model(model, inputs, training=True))
    except (TraceError, ValueError) as error:
        warnings.warn(
            f"only evaluation mode was analysed, since {error}; what runs in training alone does "
            f"not grow along",
            stacklevel=levels_to_caller(),
        )
    best = _best(model, runs, known)
    ops = [[(step.name, step.place, step.module) for step in run.steps] for run in runs]
    best.graph.modes_alike = len(ops) == 2 and ops[0] == ops[1]
    if runs[0].fake:
        # On real values nothing tells how forward would decide at another width.
        fix_what_widening_breaks(model, inputs, best.tried(runs)[0])
    decides = not all(run.fake for run in runs)
    return best.finished(best.tried(runs), decides=decides)


def _best(model: nn.Module, runs: Sequence[Trace], known: ChannelGraph | None) -> Analysis:
    if known is not None and known.choices:
        again = Analysis(model, preferred=known.chosen).run(runs)
        if known.choices.issuperset(choice.place for choice in again.choices):
            return again
    return best_of(lambda preferred: Analysis(model, preferred=preferred).run(runs))


class Analysis(Sources):
    """One pass over the traces of a model's forward."""

    def __init__(
        self,
        model: nn.Module,
        *,
        preferred: Mapping[str, int] | None = None,
        free_input: str | None = None,
    ) -> None:
        super().__init__(model, free_input)
        self.preferred = dict(preferred or {})
        self.choices: list[Choice] = []
        self.not_zero: list[set[int]] = []
        self.couplings: list[dict[int, Couplings]] = []
        self.ties = Ties(self.modules, self.groups, self.graph.nodes)
        self.remainders = Remainders(self.groups)
        self.outputs: list[Axis] = []
        names = {id(module): name for name, module in self.modules.items()}
        for name, module in model.named_modules(remove_duplicate=False):
            self.graph.aliases[name] = names.get(id(module), name)  # not that of a wrapper

    def run(self, runs: Sequence[Trace]) -> Analysis:
        """Follows the channels through all traces."""
        for trace in runs:
            self.refusals.update({**trace.recorder.strays, **self.refusals})
            self.graph.assigned += trace.recorder.assigned
        for trace in runs:
            values: list[Any] = []
            self.tensors = {}
            self.not_zero.append(set())
            self.couplings.append({})
            unread = shape_only(trace.steps)
            given = (Source.INPUT, Source.UNSEEN)
            inputs = (index for index, s in enumerate(trace.steps) if s.target in given)
            self.held_tensors.begin(trace.recorder.unfit, inputs)
            for index, step in enumerate(trace.steps):
                if step.target is Source.TENSOR:
                    self.tensors[index] = step.args[0]
                if index in unread:
                    values.append(constant_like(step.example, ""))
                    continue
                values.append(self._value(step, values))
            self.values.append(values)
            for index in unused(trace.steps) if self.couplings[-1] else ():
                self.couplings[-1].pop(index, None)
        self.held_tensors.tie_sets()
        self.held_tensors.settle()
        self.layer_numbers.settle()
        self.remainders.settle()
        read = {s.args[0] for run in runs for s in run.steps if s.target is Source.TENSOR}
        self.graph.ties = self.ties.settle(read)
        notes = zip(self.values, self.not_zero, self.couplings, strict=True)
        followed = zip(runs, notes, strict=True)
        traced = [TracedRun(run.steps, *of_run) for run, of_run in followed]
        settle_starts(self.graph, self.modules, traced)
        self._add_uncalled()
        return self

    @property
    def growing(self) -> int:
        """The number of layers that can grow."""
        return sum(not self.graph.reason(node) for node in self.graph.sized())

    @property
    def sized(self) -> int:
        """The number of layers that would grow if all could."""
        return len(self.graph.sized())

    @property
    def buffered(self) -> frozenset[int]:
        """The groups that buffers of modules would have to grow along with."""
        buffers = [n for n in self.graph.nodes.values() if n.use is not None and n.kind == "Buffer"]
        return frozenset(g for node in buffers for g in self.graph.growing_groups(node.outs))

    @property
    def held(self) -> list[HeldNumber]:
        """The numbers that forward reads from modules and that follow widths."""
        return [
            HeldNumber(module, attribute, axis)
            for (module, attribute), axis in self.numbers.items()
            if self._follows_a_width(axis)
        ]

    def tried(self, runs: Sequence[Trace]) -> tuple[Trial, ...]:
        """The trials for other widths; the second run is in training mode."""
        pairs = enumerate(zip(runs, self.values, strict=True))
        return tuple(
            Trial(self.graph, self.held, run.steps, values, training=index > 0)
            for index, (run, values) in pairs
        )

    def finished(self, trials: tuple[Trial, ...], *, decides: bool, asks: bool = False) -> Followed:
        """The graph, with the numbers that follow it, and the runs."""
        held = {(each.module, each.attribute): each for each in self.held}
        named = {(n.module, n.attribute): n for n in named_numbers(self.graph, self.modules)}
        self.graph.numbers = tuple({**named, **held}.values())
        self.graph.chosen = self.preferred
        self.graph.choices = frozenset(choice.place for choice in self.choices)
        return Followed(self.graph, trials, tuple(self.outputs), decides, asks)

    def _follows_a_width(self, axis: Axis) -> bool:
        return self.groups.can_grow(axis) and not self.groups.is_free(self.groups.size(axis))

    def _value(self, step: Step, values: Sequence[Any]) -> Any:
        if isinstance(step.target, Source) and step.target is not Source.OUTPUT:
            return self._source(step, values)

        def looked_up(leaf: Any) -> Any:
            if not isinstance(leaf, Ref):
                return leaf
            if leaf.step in self.tensors and not asks_about_shape(step):
                self._note_direct_use(self.tensors[leaf.step], step)
            return at_path(values[leaf.step], leaf.path)

        args, kwargs = mapped(step.args, looked_up), mapped(step.kwargs, looked_up)
        if step.target is Source.OUTPUT:
            self._output(args[0])
            return None
        module = None if step.module is None else self.modules[step.module]
        layer = stock(module) if module is not None else None
        op = Op(
            step.name,
            step.place,
            type(layer) if layer is not None else step.target,
            args,
            kwargs,
            step.example,
            self.groups,
            layer,
            *(self.preferred, self.choices, self.remainders),
            self.held_tensors.summed,
        )
        entry = layer_type_of(layer) if layer is not None else None
        result = result_of(op) if entry is None else self._layer(op, str(step.module), entry)
        if op.marks:
            self.not_zero[-1].add(len(values))
        if op.couplings:
            self.couplings[-1][len(values)] = tuple(op.couplings)
        return self.held_tensors.seen(op, step, len(values), result)

    def _output(self, value: Any) -> None:
        returned = tuple(leaf.axes for leaf in value)
        if self.outputs:  # of a run in evaluation mode, which comes first
            self.graph.training_outputs = returned
        else:
            self.graph.outputs = returned
        for leaf in value:
            self.outputs.extend(leaf.axes)
            for axis in leaf.axes:
                self.groups.fix(
                    self.groups.resolve(axis)[:-1],
                    "it lies before other channels of an output (of a cache: set use_cache=False)",
                )

    def _layer(self, op: Op, name: str, entry: LayerType) -> Any:
        if not entry.reads_channels:
            return self._source_layer(op, name, entry)
        signature = entry.signature(op.module)
        if signature is not None:
            return follow_call(op, signature, lambda axis: self._node(op, name, entry, axis))
        dim = entry.channel_dim(op.module) if op.module is not None else 0
        if not -len(op.x.axes) <= dim < len(op.x.axes):
            text = "is given a tensor of too few dimensions"
            fix_arguments(op, text)
            return op.constants(text)
        dim %= len(op.x.axes)
        node = self._node(op, name, entry, op.x.axes[dim])
        others = op.x.axes[:dim] + op.x.axes[dim + 1 :]
        if entry.mixes:
            for other in others:
                op.fix(other, "works along it as if it were space")
            shape = op.example.shape
            axes = [constant(int(size)) for size in shape]
        else:
            axes = list(op.x.axes)
        axes[dim] = self.groups.resolve(node.outs)
        return Shaped(tuple(axes))

    def _node(self, op: Op, name: str, entry: LayerType, axis: Axis) -> LayerNode:
        """The node of a layer that reads an axis."""
        if name not in self.graph.nodes:
            return self._new_node(op, name, entry, axis)
        node = self.graph.nodes[name]
        self.groups.tie(node.ins, axis, f"`{name}` reads it and {op.place} reads another")
        return node

    def _source_layer(self, op: Op, name: str, entry: LayerType) -> Any:
        """A layer that looks its channels up: indices in, channels out."""
        if name not in self.graph.nodes:
            axes = entry.tensors(op.module).values()
            rows = any(along.side == "in" for known in axes for along in known.values())
            count = _sizes_of(self.modules[name], entry)[0]
            ins = self.groups.new(count) if rows else ()
            self._new_node(op, name, entry, ins)
        kept = (constant(int(size)) for size in op.example.shape[:-1])
        return Shaped((*kept, self.groups.resolve(self.graph.nodes[name].outs)))

    def _new_node(self, op: Op, name: str, entry: LayerType, axis: Axis) -> LayerNode:
        module, groups = op.module, self.groups
        sizes = _sizes_of(self.modules[name], entry)
        assert module is not None
        refusal = self.refusals.get(name) or refusal_of(entry, module) or emptiness(entry, sizes)
        if entry.diagonal(module):
            reason = op.reason("treats channels in whole groups")
            groups.bundle(axis, entry.bundle(module), reason)
            outs = scaled(axis, sizes[1] // sizes[0])
        else:
            outs = groups.new(sizes[1])
            for side in (axis, outs):
                groups.sections(side, entry.sections(module), op.reason("has groups"))
        node = self._add(name, self.modules[name], axis, outs)
        self.ties.meet(node, entry)
        if refusal:
            self._fix_node(node, f"`{name}`: {refusal}")
        self.layer_numbers.met(node)
        return node

    def _add(self, name: str, module: nn.Module, ins: Axis, outs: Axis) -> LayerNode:
        layer = stock(module)
        kind = type(layer).__name__
        entry = layer_type_of(layer)
        looks_up = entry is not None and entry.looks_up
        self.graph.nodes[name] = LayerNode(name, kind, is_sized(layer), ins, outs, looks_up)
        return self.graph.nodes[name]

    def _add_unfollowed(self, name: str, module: nn.Module, reason: str) -> None:
        outs = constant(1, f"`{name}`: {reason}")
        self.graph.nodes[name] = replace(self._add(name, module, constant(1), outs), followed=False)

    def _add_uncalled(self) -> None:
        """Adds the layers that forward did not call, which cannot grow."""
        whole = tuple(
            f"{name}."
            for name, module in self.modules.items()
            if isinstance(module, SplitLayer) or name in self.graph.nodes
        )
        for name, module in self.modules.items():
            if name in self.graph.nodes or not is_sized(stock(module)):
                continue
            if name.startswith(whole):
                continue  # a block of a split layer
            reason = self.refusals.get(name, "")
            if not reason and layer_type_of(stock(module)) is None:
                reason = subclass_refusal(module)
            reason = (
                reason or "forward does not call it as a layer of its own on the example inputs"
            )
            self._add_unfollowed(name, module, reason)


def _sizes_of(module: nn.Module, entry: LayerType) -> tuple[int, int]:
    """The numbers of inputs and outputs of a layer, grown or not."""
    return module.sizes() if isinstance(module, SplitLayer) else entry.sizes(module)
