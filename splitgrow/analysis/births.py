"""The values that new units have at birth, followed through the ops of a trace.

Where all channels share a statistic, new ones may join only with values that change it in a known
way: zeros for an RMS norm, the mean of the old channels for a LayerNorm, copies for both. The
layers that make a stream can give their new units such values. This follows them from there to each
layer that reads them, for each of the three ways, and finds the ways that reach every norm.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from splitgrow.analysis.channel_graph import BirthStates, ChannelGraph
from splitgrow.analysis.channels.channel_axes import Axis, Run, groups_of
from splitgrow.analysis.ops import Shaped, entry_of
from splitgrow.analysis.ops.elementwise import elementwise
from splitgrow.analysis.ops.facts import UNKNOWN, Arithmetic, Facts, Values
from splitgrow.analysis.ops.op import shaped_in
from splitgrow.analysis.ties import readers_of_tied
from splitgrow.analysis.trace import Ref, Source, Step, mapped
from splitgrow.layers.split_layer import stock
from splitgrow.layers.types import WAYS, Birth, LayerType, layer_type_of

_MADE = {
    Birth.ZERO: "makes something else than zeros of zeros",
    Birth.MEAN: "makes something else than a mean of means",
    Birth.COPY: "treats equal channels differently",
}


Couplings: TypeAlias = tuple[tuple[Axis, str], ...]


@dataclass(frozen=True)
class TracedRun:
    """One trace, with the results of the ops' rules.

    Attributes:
        steps: The steps.
        values: The result of each in axes.
        not_zero: The steps that make something else than zeros of zeros by their numbers.
        couplings: By step the axes that can grow by copies only, and why not otherwise.
    """

    steps: Sequence[Step]
    values: Sequence[Any]
    not_zero: Collection[int] = ()
    couplings: Mapping[int, Couplings] = field(default_factory=dict)


@dataclass(frozen=True)
class _State:
    """The values at birth of one group's units in a tensor.

    Attributes:
        birth: The values.
        lost: Why they are not those of the way.
        norm: The norm that made them, if only plain numbers have scaled them since.
    """

    birth: Birth
    lost: str = ""
    norm: str = ""


_FREE = _State(Birth.FREE)
_States = Mapping[int, _State]


def settle_births(
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
    watched = _watched(graph, modules, tied)
    for run in runs:
        for axis in (axis for each in run.couplings.values() for axis, _ in each):
            for group in graph.growing_groups(axis):
                watched[group] = watched.get(group, frozenset()) | {Birth.COPY}
    if not watched:
        return
    found = {}
    for way, birth in WAYS.items():
        found[way] = follower = _Follower(graph, modules, birth, frozenset(watched), tied)
        for run in runs:
            follower.follow(run)
        follower.share_out()
    graph.births = {
        way: BirthStates(f.ins, f.outs, frozenset(f.sharing)) for way, f in found.items()
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
    graph: ChannelGraph, modules: Mapping[str, Any], tied: Mapping[str, frozenset[str]]
) -> dict[int, frozenset[Birth]]:
    """The groups whose new units may not have any values, with the births that come into question.

    These are the groups that norms over all channels read, and those of which new units are read
    with the weights that make them.
    """
    watched: dict[int, frozenset[Birth]] = {}
    for reader in tied:
        node = graph.nodes[reader]
        for group in () if node.looks_up else graph.growing_groups(node.ins):
            watched[group] = frozenset((Birth.ZERO,))
    for node in graph.nodes.values():
        if node.use is not None:
            continue
        layer = stock(modules[node.name])
        entry = layer_type_of(layer)
        taken = frozenset(entry.births(layer)) if entry is not None else frozenset()
        for group in graph.growing_groups(node.ins) if taken else ():
            watched[group] = watched.get(group, taken) | taken
    return watched


@dataclass
class _Follower:
    """Follows one way through traces.

    Attributes:
        graph: The channel graph.
        modules: The model's modules by path.
        birth: The values that layers give their new units.
        watched: The groups that are followed.
        tied: The layers that read new units with the weights that make them, and their makers.
        ins: By layer and group, the births that it reads.
        outs: By layer and group, the births of its outputs.
        lost: For groups to whose norms the way does not lead, the reasons.
        sharing: The norms whose outputs must count for less, with their readers and their group.
        otherwise: The norms whose outputs are also used otherwise, and where.
    """

    graph: ChannelGraph
    modules: Mapping[str, Any]
    birth: Birth
    watched: frozenset[int]
    tied: Mapping[str, frozenset[str]]
    ins: dict[str, dict[int, Birth]] = field(default_factory=dict)
    outs: dict[str, dict[int, Birth]] = field(default_factory=dict)
    lost: dict[int, str] = field(default_factory=dict)
    sharing: dict[str, tuple[str, int]] = field(default_factory=dict)
    otherwise: dict[str, str] = field(default_factory=dict)

    def follow(self, run: TracedRun) -> None:
        """Follows the way through one trace."""
        states: list[dict[int, _State]] = []
        for index, step in enumerate(run.steps):
            given = list(_operands(step, run.values))
            written = given[:1] if _writes(step) else []
            value = written[0][1] if written else run.values[index]
            groups = self._watched_in(value)
            if step.module is not None and self._entry(step.module) is not None:
                states.append(self._layer(step, groups, given, states))
            elif step.target is Source.TENSOR:
                states.append(self._held(step.args[0], groups))
            elif isinstance(step.target, Source) or not groups:
                self._used(step, given, states)
                states.append({})
            else:
                op = _Op(self, step, value, given, states, index in run.not_zero)
                states.append({group: op.state(group) for group in groups})
                if not any(state.norm for state in states[-1].values()):
                    self._used(step, given, states)
            for axis, reason in run.couplings.get(index, ()):
                self._couple(axis, reason, given, states)
            for ref, _ in written:  # code may go on with the tensor that was written into
                states[ref.step] = {**states[ref.step], **states[-1]}

    def _couple(
        self,
        axis: Axis,
        reason: str,
        given: Sequence[tuple[Ref, Shaped]],
        states: Sequence[_States],
    ) -> None:
        """Gives up the way where an op takes one value over channels that are no copies."""
        axis = self.graph.groups.resolve(axis)
        for group in self.watched.intersection(groups_of(axis)):
            found = [states[ref.step].get(group, _FREE) for ref, _ in given]
            copies = self._alone(axis) and any(state.birth is Birth.COPY for state in found)
            if not copies:
                self.lost.setdefault(group, reason)

    def _watched_in(self, value: Any) -> list[int]:
        """The watched groups on the axes of a result, in order."""
        found: dict[int, None] = {}
        for shaped in shaped_in(value):
            for axis in shaped.axes:
                found.update(dict.fromkeys(groups_of(self.graph.groups.resolve(axis))))
        return [group for group in found if group in self.watched]

    def _entry(self, name: str) -> LayerType | None:
        return layer_type_of(stock(self.modules[name]))

    def _held(self, path: str, groups: list[int]) -> dict[int, _State]:
        """The states in a parameter or buffer of a module."""
        node = self.graph.nodes.get(path)
        if node is None or node.use is None or not groups:
            return {}
        scales = node.use.role == "scales" and self.birth is not Birth.COPY
        birth = Birth.FREE if scales else self.birth
        self.outs[path] = dict.fromkeys(groups, birth)
        return dict.fromkeys(groups, _State(birth))

    # -- layers ------------------------------------------------------------------------------------

    def _layer(
        self,
        step: Step,
        groups: list[int],
        given: Sequence[tuple[Ref, Shaped]],
        states: Sequence[_States],
    ) -> dict[int, _State]:
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
            birth = read.get(group, _FREE).birth
            known[group] = birth if known.get(group, birth) is birth else Birth.FREE
        made = self._made(step, entry, layer, groups, read)
        self.outs[name] = {group: state.birth for group, state in made.items()}
        return made

    def _used(
        self, step: Step, given: Sequence[tuple[Ref, Shaped]], states: Sequence[_States]
    ) -> None:
        """Notes a use of a norm's output other than by a tied layer."""
        for ref, _ in given:
            for state in states[ref.step].values():
                if state.norm:
                    self.otherwise.setdefault(state.norm, step.place)

    def _read_by_tied(self, name: str, step: Step, read: _States) -> None:
        """Looks at new units that a layer reads with the weights that make them."""
        for group, state in read.items() if name in self.tied else ():
            if state.birth is Birth.ZERO or self.birth is Birth.ZERO:
                continue  # nothing times the weight, or any value times zero
            if state.birth is Birth.COPY and state.norm:
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
        self, step: Step, entry: LayerType, layer: Any, groups: list[int], read: _States
    ) -> dict[int, _State]:
        if not entry.diagonal(layer):
            copies = not (entry.merging.computes_weight or entry.reads_back(layer))
            means = copies and entry.sections(layer) == 1
            able = {Birth.ZERO: True, Birth.MEAN: means, Birth.COPY: copies}[self.birth]
            lost = "" if able else f"`{step.module}` cannot make such units"
            return {g: _State(self.birth if able else Birth.FREE, lost) for g in groups}
        taken = entry.births(layer)
        if not taken:
            passed = {Birth.ZERO: Birth.ZERO, Birth.COPY: Birth.COPY}
            return {g: self._after(step, read.get(g, _FREE), passed) for g in groups}
        axis = self.graph.nodes[str(step.module)].ins
        made = {}
        for group in groups:
            state = read.get(group, _FREE)
            fits = self._alone(axis) or state.birth is Birth.ZERO
            if state.birth not in taken or not fits:
                why = state.lost or "its new channels would change these"
                self.lost.setdefault(
                    group,
                    f"`{type(layer).__name__}` takes its statistics over all its channels, at "
                    f"{step.place}: {why}",
                )
            after = self._after(step, state, taken)
            made[group] = replace(after, norm=str(step.module))
        return made

    def _alone(self, axis: Axis) -> bool:
        """Whether all channels of an axis that can grow belong to one group, and copies to all."""
        runs = self.graph.groups.resolve(axis)
        groups = {run.group for run in runs}
        return len(groups) == 1 or (self.birth is Birth.MEAN and len(groups - {None}) == 1)

    def _after(self, step: Step, state: _State, passed: Mapping[Birth, Birth]) -> _State:
        if state.birth in passed:
            return _State(passed[state.birth])
        return _State(Birth.FREE, state.lost or self.made_otherwise(step))

    def made_otherwise(self, step: Step) -> str:
        """Why an op gives new channels other values than those of the way."""
        return f"`{step.name}` at {step.place} {_MADE[self.birth]}"


# -- ops -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Op:
    """One op on the way.

    Attributes:
        follower: The way that is followed.
        step: The op.
        value: Its result in axes.
        given: Its operands: the references to them, and their axes.
        states: The states in the results of the earlier steps.
        not_zero: Whether it makes something else than zeros of zeros.
    """

    follower: _Follower
    step: Step
    value: Any
    given: Sequence[tuple[Ref, Shaped]]
    states: Sequence[_States]
    not_zero: bool

    def state(self, group: int) -> _State:
        """The state of a group's units in the result."""
        having = [pair for pair in self.given if self._dims(pair[1], group)]
        found = [self.states[ref.step].get(group, _FREE) for ref, _ in having]
        if not found:
            return _State(Birth.FREE, self.follower.made_otherwise(self.step))
        lost = next((state.lost for state in found if state.lost), "")
        births = {state.birth for state in found}
        entry = entry_of(self.step.target)
        facts = entry.facts if entry is not None else UNKNOWN
        by_position = entry is not None and entry.rule is elementwise
        if self._zero(facts, births, having, by_position=by_position):
            return _State(Birth.ZERO)
        if births == {Birth.COPY} and entry is not None and entry.built_in and facts.alike:
            return _State(Birth.COPY, norm=self._norm(facts, found))
        if births == {Birth.MEAN} and self._mean(facts, group, having):
            return _State(Birth.MEAN)
        return _State(Birth.FREE, lost or self.follower.made_otherwise(self.step))

    def _zero(
        self, facts: Facts, births: set[Birth], having: Sequence[Any], *, by_position: bool
    ) -> bool:
        """Whether the result is zero."""
        if facts.values is Values.PRODUCT or facts.arithmetic is Arithmetic.MULTIPLIES:
            return Birth.ZERO in births
        others = by_position and len(having) < len(self.given)
        if others and facts.arithmetic is not Arithmetic.DIVIDES:
            return False
        return births == {Birth.ZERO} and facts.zero and not self.not_zero

    def _norm(self, facts: Facts, found: Sequence[_State]) -> str:
        """The norm that made the result, scaled by plain numbers at most."""
        scales = facts.arithmetic in {Arithmetic.MULTIPLIES, Arithmetic.DIVIDES}
        kept = scales or facts.values in {Values.KEPT, Values.MOVED}
        return found[0].norm if kept and len(self.given) == 1 else ""

    def _mean(self, facts: Facts, group: int, having: Sequence[tuple[Ref, Shaped]]) -> bool:
        """Whether the result's new channels are the mean of its old ones, as the operands' are."""
        at = [n for n, pair in enumerate(self.given) if any(pair is other for other in having)]
        if not facts.linear or (facts.arithmetic is Arithmetic.DIVIDES and at != [0]):
            return False
        if facts.values in _PRODUCTS or facts.arithmetic is Arithmetic.MULTIPLIES:
            factors = {position for position, _ in facts.factors}
            added = {2} if facts.values is Values.UNKNOWN else set()  # the bias of a layer
            if len(factors.intersection(at)) > 1 or not {*at} <= factors | added:
                return False
        axes = {axis for _, shaped in having for axis in self._dims(shaped, group)}
        results = [self._dims(shaped, group) for shaped in shaped_in(self.value)]
        return len(axes) == 1 and all(set(found) == axes for found in results if found)

    def _dims(self, shaped: Shaped, group: int) -> list[Axis]:
        """The axes of a tensor on which a group lies."""
        resolved = map(self.follower.graph.groups.resolve, shaped.axes)
        return [axis for axis in resolved if group in groups_of(axis)]


_PRODUCTS = (Values.PRODUCT, Values.UNKNOWN)
"""Ops of these kinds, if linear at all, are so in one operand at a time."""


def _writes(step: Step) -> bool:
    """Whether an op writes into its first operand."""
    name = step.target
    by_name = isinstance(name, str) and name.endswith("_") and not name.endswith("__")
    return by_name or step.target is operator.setitem


def _operands(step: Step, values: Sequence[Any]) -> Iterator[tuple[Ref, Shaped]]:
    """The tensors among a step's arguments."""
    found: list[Ref] = []
    mapped((step.args, dict(step.kwargs)), lambda leaf: _note(leaf, found))
    for ref in found:
        value = values[ref.step]
        for index in ref.path:
            value = value[index]
        if isinstance(value, Shaped):
            yield ref, value


def _note(leaf: Any, found: list[Ref]) -> Any:
    if isinstance(leaf, Ref):
        found.append(leaf)
    return leaf
