"""The layers whose new units must have certain first values, since of what they make norms read.

Heads as wide as the stream lie on the stream's group, and no norm reads them: the layer behind them
makes units of its own. They may begin with any values, and so differ from each other.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from splitgrow.analysis.channels.channel_axes import Axis, groups_of
from splitgrow.analysis.channels.channel_groups import Groups
from splitgrow.analysis.ops import Shaped
from splitgrow.analysis.ops.op import shaped_in
from splitgrow.analysis.start_ops import operands, writes_into_operand
from splitgrow.analysis.trace import Ref, Source, Step
from splitgrow.layers.split_layer import stock
from splitgrow.layers.types import layer_type_of

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

    @cached_property
    def given(self) -> list[list[tuple[Ref, Shaped]]]:
        """The operands of each step: the references to them, and their axes."""
        return [list(operands(step, self.values)) for step in self.steps]


class Watched:
    """The groups that are followed, and where they lie.

    Args:
        groups: The store of groups, whose constraints are all stated.
        watched: The groups in question.
    """

    def __init__(self, groups: Groups, watched: Collection[int]) -> None:
        self._groups = groups
        self.watched = frozenset(watched)
        self._known: dict[int, tuple[Any, list[int]]] = {}

    def on(self, value: Any) -> list[int]:
        """The groups on the axes of a result, in order."""
        known = self._known.get(id(value))
        if known is None:
            axes = (axis for shaped in shaped_in(value) for axis in shaped.axes)
            known = value, self.on_axes(axes)  # with the value, so that it keeps its id
            self._known[id(value)] = known
        return known[1]

    def on_axes(self, axes: Iterable[Axis]) -> list[int]:
        """The groups on axes, in order."""
        found = (group for axis in axes for group in groups_of(self._groups.resolve(axis)))
        return [group for group in dict.fromkeys(found) if group in self.watched]


def bound_layers(
    modules: Mapping[str, Any], runs: Sequence[TracedRun], watched: Watched, tied: Collection[str]
) -> dict[str, set[int]]:
    """By the path of each layer and tensor, the groups of which its first values count.

    Args:
        modules: The model's modules by path.
        runs: The traces.
        watched: The groups in question.
        tied: The layers that read units with the weights that make them.
    """
    bound: dict[str, set[int]] = {}
    for run in runs:
        # count[n]: the groups of the result of step n whose first values count
        count: list[set[int]] = [set() for _ in run.steps]
        for index in range(len(run.steps) - 1, -1, -1):
            step = run.steps[index]
            own = step.args[0] if step.target is Source.TENSOR else step.module
            if own is not None:
                bound.setdefault(own, set()).update(count[index])
            passed = _passed_back(step, modules, count[index], tied)
            coupled = watched.on_axes(axis for axis, _ in run.couplings.get(index, ()))
            for ref, shaped in run.given[index]:
                groups = {*watched.on(shaped)}
                mine = groups if passed is None else groups & passed
                count[ref.step] |= mine | groups.intersection(coupled)
                if writes_into_operand(step):  # code may go on with the tensor that was written to
                    count[index] |= count[ref.step] & groups
    return bound


def _passed_back(
    step: Step, modules: Mapping[str, Any], count: set[int], tied: Collection[str]
) -> set[int] | None:
    """The groups whose values count for a step since they do for its result; None for all."""
    if step.module is None:
        return count
    layer = stock(modules[step.module])
    entry = layer_type_of(layer)
    if step.module in tied or (entry is not None and entry.starts(layer)):
        return None
    return count if entry is None or entry.diagonal(layer) else set()
