"""The first values of new units, followed through the ops of a trace.

Where all channels share a statistic, new ones may join only with values that change it in a known
way: zeros for an RMS norm, the mean of the old channels for a LayerNorm, copies for both. The
layers that make a stream can give their new units such values. This follows them from there to each
layer that reads them, for each of the three ways, and finds the ways that reach every norm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from splitgrow.analysis.channel_graph import ChannelGraph, StartStates
from splitgrow.analysis.channels.channel_axes import Axis, Run, groups_of
from splitgrow.analysis.ops import Shaped
from splitgrow.analysis.start_ops import (
    FREE,
    OpOnTheWay,
    StartState,
    States,
    made_otherwise,
    writes_into_operand,
)
from splitgrow.analysis.start_readers import TracedRun, Watched, bound_layers
from splitgrow.analysis.ties import readers_of_tied
from splitgrow.analysis.trace import Ref, Source, Step
from splitgrow.layers.split_layer import stock
from splitgrow.layers.types import WAYS, LayerType, Start, layer_type_of


def settle_starts(
    graph: ChannelGraph, modules: Mapping[str, Any], runs: Sequence[TracedRun]
) -> None:
    """Finds the ways in which each group can grow that a norm over all channels reads.

    Groups without a way are fixed, with the reason.

    Args:
        graph: The channel graph, whose constraints are all stated.
        modules: The model's modules by path.
        runs: The traces.
    """
    tied = readers_of_tied(graph.ties, modules)
    coupled = [axis for run in runs for each in run.couplings.values() for axis, _ in each]
    watched = _watched(graph, modules, tied, coupled)
    if not watched:
        return
    known = Watched(graph.groups, watched.keys())
    bound = bound_layers(modules, runs, known, tied.keys())
    found = {}
    for way, start in WAYS.items():
        found[way] = follower = _Follower(graph, modules, start, known, tied, bound)
        for run in runs:
            follower.follow(run)
        follower.share_out()
    graph.starts = {
        way: StartStates(f.ins, f.outs, frozenset(f.sharing)) for way, f in found.items()
    }
    for group, asked in watched.items():
        lost = {way: f.lost[group] for way, f in found.items() if group in f.lost}
        graph.ways[group] = tuple(way for way in WAYS if way not in lost)
        first = {way: lost[way] for way in lost if WAYS[way] in asked}
        graph.lost[group] = first | lost
        if not graph.ways[group]:
            reasons = dict.fromkeys(first.values())
            graph.groups.fix((Run(group, 1),), "; ".join(reasons))


def _watched(
    graph: ChannelGraph,
    modules: Mapping[str, Any],
    tied: Mapping[str, frozenset[str]],
    coupled: Iterable[Axis],
) -> dict[int, frozenset[Start]]:
    """The groups whose new units may not have any values, with the starts that come into question.

    These are the groups that norms over all channels read, those of which new units are read with
    the weights that make them, and those that can grow by copies only.
    """
    watched: dict[int, frozenset[Start]] = {}
    for reader in tied:
        node = graph.nodes[reader]
        for group in () if node.looks_up else graph.growing_groups(node.ins):
            watched[group] = frozenset((Start.ZERO,))
    for node in graph.nodes.values():
        if node.use is not None:
            continue
        layer = stock(modules[node.name])
        entry = layer_type_of(layer)
        taken = frozenset(entry.starts(layer)) if entry is not None else frozenset()
        for group in graph.growing_groups(node.ins) if taken else ():
            watched[group] = watched.get(group, taken) | taken
    for group in (group for axis in coupled for group in graph.growing_groups(axis)):
        watched[group] = watched.get(group, frozenset()) | {Start.COPY}
    return watched


@dataclass
class _Follower:
    """Follows one way through traces.

    Attributes:
        graph: The channel graph.
        modules: The model's modules by path.
        start: The values that layers give their new units.
        watched: The groups that are followed.
        tied: The layers that read new units with the weights that make them, and their makers.
        bound: By layer the groups of which it must make such units.
        ins: By layer and group, the starts that it reads.
        outs: By layer and group, the starts of its outputs.
        lost: For groups to whose norms the way does not lead, the reasons.
        sharing: The norms whose outputs must count for less, with their readers and their group.
        otherwise: The norms whose outputs are also used otherwise, and where.
    """

    graph: ChannelGraph
    modules: Mapping[str, Any]
    start: Start
    watched: Watched
    tied: Mapping[str, frozenset[str]]
    bound: Mapping[str, Collection[int]]
    ins: dict[str, dict[int, Start]] = field(default_factory=dict)
    outs: dict[str, dict[int, Start]] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    sharing: dict[str, tuple[str, int]] = field(default_factory=dict)
    otherwise: dict[str, str] = field(default_factory=dict)

    def follow(self, run: TracedRun) -> None:
        """Follows the way through one trace."""
        states: list[dict[int, StartState]] = []
        for index, step in enumerate(run.steps):
            given = run.given[index]
            written = given[:1] if writes_into_operand(step) else []
            value = written[0][1] if written else run.values[index]
            groups = self.watched.on(value)
            if step.module is not None and self._entry(step.module) is not None:
                states.append(self._layer(step, groups, given, states))
            elif step.target is Source.TENSOR:
                states.append(self._held(step.args[0], groups))
            elif isinstance(step.target, Source) or not groups:
                self._used(step, given, states)
                states.append({})
            else:
                op = OpOnTheWay(
                    self.graph.groups,
                    self.start,
                    step,
                    value,
                    given,
                    states,
                    index in run.not_zero,
                )
                states.append({group: op.state(group) for group in groups})
                if not any(state.norm for state in states[-1].values()):
                    self._used(step, given, states)
            if step.module is None:
                self._read_by_matrices(given, states)
            for axis, reason in run.couplings.get(index, ()):
                self._couple(axis, reason, given, states)
            for ref, _ in written:  # code may go on with the tensor that was written into
                states[ref.step] = {**states[ref.step], **states[-1]}

    def _couple(
        self,
        axis: Axis,
        reason: str,
        given: Sequence[tuple[Ref, Shaped]],
        states: Sequence[States],
    ) -> None:
        """Gives up the way where an op takes one value over channels that are no copies."""
        axis = self.graph.groups.resolve(axis)
        for group in self.watched.on_axes((axis,)):
            found = [states[ref.step].get(group, FREE) for ref, _ in given]
            copies = self._alone(axis) and any(state.start is Start.COPY for state in found)
            if not copies:
                self.lost.setdefault(group, reason)

    def _read_by_matrices(
        self, given: Sequence[tuple[Ref, Shaped]], states: Sequence[States]
    ) -> None:
        """Notes the states that a product reads with a matrix that a module holds."""
        for _, shaped in given:
            node = self.graph.nodes.get(shaped.origin.path) if shaped.origin is not None else None
            if node is None or not node.ins or node.use is None:
                continue
            known = self.ins.setdefault(node.name, {})
            for group in self.watched.on_axes((node.ins,)):
                found = [
                    states[ref.step].get(group, FREE).start
                    for ref, other in given
                    if other is not shaped and group in self.watched.on(other)
                ]
                for start in found:
                    known[group] = start if known.get(group, start) is start else Start.FREE

    def _entry(self, name: str) -> LayerType | None:
        return layer_type_of(stock(self.modules[name]))

    def _held(self, path: str, groups: list[int]) -> dict[int, StartState]:
        """The states in a parameter or buffer of a module."""
        node = self.graph.nodes.get(path)
        if node is None or node.use is None or not groups:
            return {}
        scales = node.use.role == "scales" and self.start is not Start.COPY
        bound = () if scales else self.bound.get(path, ())
        made = {group: StartState(self.start) if group in bound else FREE for group in groups}
        self.outs[path] = {group: state.start for group, state in made.items()}
        return made

    # -- layers ------------------------------------------------------------------------------------

    def _layer(
        self,
        step: Step,
        groups: list[int],
        given: Sequence[tuple[Ref, Shaped]],
        states: Sequence[States],
    ) -> dict[int, StartState]:
        name = str(step.module)
        layer, entry = stock(self.modules[name]), self._entry(name)
        assert entry is not None
        read = states[given[0][0].step] if given and entry.reads_channels else {}
        node = self.graph.nodes[name]
        self._read_by_tied(name, step, read)
        if name not in self.tied:
            self._used(step, given, states)
        known = self.ins.setdefault(name, {})
        for group in groups_of(self.graph.groups.resolve(node.ins)) if read else ():
            start = read.get(group, FREE).start
            known[group] = start if known.get(group, start) is start else Start.FREE
        made = self._made(step, entry, layer, groups, read)
        self.outs[name] = {group: state.start for group, state in made.items()}
        return made

    def _used(
        self, step: Step, given: Sequence[tuple[Ref, Shaped]], states: Sequence[States]
    ) -> None:
        """Notes a use of a norm's output other than by a tied layer."""
        for ref, _ in given:
            for state in states[ref.step].values():
                if state.norm:
                    self.otherwise.setdefault(state.norm, step.place)

    def _read_by_tied(self, name: str, step: Step, read: States) -> None:
        """Looks at new units that a layer reads with the weights that make them."""
        for group, state in read.items() if name in self.tied else ():
            if state.start is Start.ZERO or self.start is Start.ZERO:
                continue  # nothing times the weight, or any value times zero
            if state.start is Start.COPY and state.norm:
                self.sharing[state.norm] = name, group
            else:
                made_by = " and ".join(f"`{maker}`" for maker in sorted(self.tied[name]))
                self.lost.setdefault(
                    group,
                    f"`{name}` reads it with the weight of {made_by}, at {step.place}, so that "
                    f"new units would count there",
                )

    def share_out(self) -> None:
        """Gives up the way for norms whose outputs would have to count for less, and cannot."""
        for norm, (reader, group) in self.sharing.items():
            if norm in self.otherwise:
                self.lost.setdefault(
                    group,
                    f"`{norm}` makes it both for `{reader}`, which has the weights that make it, "
                    f"and for {self.otherwise[norm]}",
                )

    def _made(
        self, step: Step, entry: LayerType, layer: Any, groups: list[int], read: States
    ) -> dict[int, StartState]:
        if not entry.diagonal(layer):
            copies = not (entry.merging.computes_new or entry.reads_back(layer))
            means = copies and entry.sections(layer) == 1
            able = {Start.ZERO: True, Start.MEAN: means, Start.COPY: copies}[self.start]
            lost = "" if able else f"`{step.module}` cannot make such units"
            made = StartState(self.start if able else Start.FREE, lost)
            bound = self.bound.get(str(step.module), ())
            return {group: made if group in bound else FREE for group in groups}
        taken = entry.starts(layer)
        if not taken:
            passed = {Start.ZERO: Start.ZERO, Start.COPY: Start.COPY}
            return {g: self._after(step, read.get(g, FREE), passed) for g in groups}
        axis = self.graph.nodes[str(step.module)].ins
        normed = {}
        for group in groups:
            state = read.get(group, FREE)
            fits = self._alone(axis) or state.start is Start.ZERO
            if state.start not in taken or not fits:
                why = state.lost or "its new channels would change these"
                self.lost.setdefault(
                    group,
                    f"`{type(layer).__name__}` takes its statistics over all its channels, at "
                    f"{step.place}: {why}",
                )
            after = self._after(step, state, taken)
            normed[group] = replace(after, norm=str(step.module))
        return normed

    def _alone(self, axis: Axis) -> bool:
        """Whether all channels of an axis that can grow belong to one group, and copies to all."""
        runs = self.graph.groups.resolve(axis)
        groups = {run.group for run in runs}
        return len(groups) == 1 or (self.start is Start.MEAN and len(groups - {None}) == 1)

    def _after(self, step: Step, state: StartState, passed: Mapping[Start, Start]) -> StartState:
        if state.start in passed:
            return StartState(passed[state.start])
        return StartState(Start.FREE, state.lost or made_otherwise(step, self.start))
