"""One op on the way of new units' first values: those of its result from those of its operands."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitgrow.analysis.channels.channel_axes import Axis, groups_of
from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.analysis.ops import Shaped, entry_of, is_in_place_name
from splitgrow.analysis.ops.elementwise import elementwise
from splitgrow.analysis.ops.facts import UNKNOWN, Arithmetic, Facts, Values
from splitgrow.analysis.ops.op import shaped_in
from splitgrow.analysis.trace import Ref, Step, at_path, refs_of
from splitgrow.layers.types import Start

_MADE = {
    Start.ZERO: "makes something else than zeros of zeros",
    Start.MEAN: "makes something else than a mean of means",
    Start.COPY: "treats equal channels differently",
}


@dataclass(frozen=True)
class StartState:
    """The first values of one group's new units in a tensor.

    Attributes:
        start: The values.
        lost: Why they are not those of the way.
        norm: The norm that made them, if only plain numbers have scaled them since.
    """

    start: Start
    lost: str = ""
    norm: str = ""


FREE = StartState(Start.FREE)
States = Mapping[int, StartState]


@dataclass(frozen=True)
class OpOnTheWay:
    """One op on the way.

    Attributes:
        groups: The store of groups.
        start: The values that layers give their new units, in the way that is followed.
        step: The op.
        value: Its result in axes.
        given: Its operands: the references to them, and their axes.
        states: The states in the results of the earlier steps.
        not_zero: Whether it makes something else than zeros of zeros.
    """

    groups: Groups
    start: Start
    step: Step
    value: Any
    given: Sequence[tuple[Ref, Shaped]]
    states: Sequence[States]
    not_zero: bool

    def state(self, group: int) -> StartState:
        """The state of a group's units in the result."""
        having = [pair for pair in self.given if self._dims(pair[1], group)]
        found = [self.states[ref.step].get(group, FREE) for ref, _ in having]
        if not found:
            return StartState(Start.FREE, made_otherwise(self.step, self.start))
        lost = next((state.lost for state in found if state.lost), "")
        starts = {state.start for state in found}
        entry = entry_of(self.step.target)
        facts = entry.facts if entry is not None else UNKNOWN
        by_position = entry is not None and entry.rule is elementwise
        if self._zero(facts, starts, having, by_position=by_position):
            return StartState(Start.ZERO)
        if starts == {Start.COPY} and entry is not None and entry.built_in and facts.alike:
            return StartState(Start.COPY, norm=self._norm(facts, found))
        if starts == {Start.MEAN} and self._mean(facts, group, having):
            return StartState(Start.MEAN)
        return StartState(Start.FREE, lost or made_otherwise(self.step, self.start))

    def _zero(
        self, facts: Facts, starts: set[Start], having: Sequence[Any], *, by_position: bool
    ) -> bool:
        """Whether the result is zero."""
        if facts.values is Values.PRODUCT or facts.arithmetic is Arithmetic.MULTIPLIES:
            return Start.ZERO in starts
        others = by_position and len(having) < len(self.given)
        if others and facts.arithmetic is not Arithmetic.DIVIDES:
            return False
        return starts == {Start.ZERO} and facts.zero and not self.not_zero

    def _norm(self, facts: Facts, found: Sequence[StartState]) -> str:
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
        resolved = map(self.groups.resolve, shaped.axes)
        return [axis for axis in resolved if group in groups_of(axis)]


_PRODUCTS = (Values.PRODUCT, Values.UNKNOWN)
"""Ops of these kinds, if linear at all, are so in one operand at a time."""


def writes_into_operand(step: Step) -> bool:
    """Whether an op writes into its first operand."""
    by_name = isinstance(step.target, str) and is_in_place_name(step.target)
    return by_name or step.target is operator.setitem


def operands(step: Step, values: Sequence[Any]) -> Iterator[tuple[Ref, Shaped]]:
    """The tensors among a step's arguments."""
    for ref in refs_of(step):
        value = at_path(values[ref.step], ref.path)
        if isinstance(value, Shaped):
            yield ref, value


def made_otherwise(step: Step, start: Start) -> str:
    """Why an op gives new channels other values than those of the way."""
    return f"`{step.name}` at {step.place} {_MADE[start]}"
