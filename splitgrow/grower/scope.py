"""The scope of a policy: the layers that may grow, and the growths that lead to goals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from torch import nn

from splitgrow.grower.candidates import Candidates, find_candidates
from splitgrow.grower.ladder import WidthRule, climb, growing_part
from splitgrow.grower.where import Where
from splitgrow.growth.edits import Edit
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.layer_list import Layer
from splitgrow.growth.multiply_adds import MacsCounter
from splitgrow.handle import handle


class Scope:
    """The layers that may grow, and the size that the model would have with some goals.

    Args:
        model: A growable model.
        candidates: The groups that may grow.
        steps: The number of growths that lead to the goals.
        fit: The widths that fit.
        measure: Measures the model's multiply-adds.

    Attributes:
        every: All layers of the model.
        layers: Those that stand for the groups that may grow.
    """

    def __init__(
        self,
        model: nn.Module,
        candidates: Candidates,
        steps: int,
        fit: WidthRule,
        measure: Callable[[], MacsCounter],
    ) -> None:
        self.every = handle(model).layers
        self.layers = tuple(layer for layer in self.every if layer.name in candidates.groups)
        self._model, self._candidates = model, candidates
        self._steps, self._fit, self._measure_it = steps, fit, measure
        self._macs: dict[tuple[tuple[str, int], ...], int] = {}

    def scaled(self, factor: float) -> dict[str, float]:
        """The goals that take every group to a multiple of its width.

        Args:
            factor: The multiple.
        """
        graph = history_of(self._model).graph
        parts = {layer.name: growing_part(graph, graph.nodes[layer.name]) for layer in self.layers}
        return {name: still + factor * growing for name, (still, growing) in parts.items()}

    @cached_property
    def _measure(self) -> MacsCounter:
        return self._measure_it()

    def parameters(self, goals: Mapping[str, float]) -> int:
        """The number of parameters that the model would have.

        Args:
            goals: The width in the end by layer.
        """
        now = sum(parameter.numel() for parameter in self._model.parameters())
        return now + sum(edit.parameters for edit in self.growths(goals))

    def macs(self, goals: Mapping[str, float]) -> int:
        """The multiply-adds that a forward pass for one sample would have.

        Args:
            goals: The width in the end by layer.
        """
        gains: dict[str, int] = {}
        for edit in self.growths(goals):
            for name, units in _gains(edit).items():
                gains[name] = gains.get(name, 0) + units
        asked = {layer.name: gains.get(layer.name, 0) for layer in self.layers}
        asked = {name: units for name, units in asked.items() if units}
        key = tuple(asked.items())
        if key not in self._macs:
            (self._macs[key],) = self._measure.after([asked], self._fit.initializer.way)
        return self._macs[key]

    def growths(self, goals: Mapping[str, float]) -> list[Edit]:
        """The growths that lead to goals; none of them is applied.

        Args:
            goals: The width in the end by layer.

        Raises:
            TypeError: If a goal is no number.
            ValueError: If there is no such layer, it may not grow, or is wider already; or the last
                widths do not fit.
        """
        history = history_of(self._model)
        known = {layer.name: layer for layer in self.every}
        for name, goal in goals.items():
            if name not in known:
                raise ValueError(f"there is no layer {name!r} that could have a goal")
            if isinstance(goal, bool) or not isinstance(goal, (int, float)):
                raise TypeError(f"the goal of `{name}` must be a number, got {goal!r}")
            if not (math.isfinite(goal) and goal >= known[name].width):
                raise ValueError(f"`{name}` has {known[name].width} units, and the goal {goal:g}")
            if not self._candidates.of(history.graph, [name]):
                raise ValueError(f"`{name}` may not grow: {self._reason(known[name])}")
        return climb(history.graph, history.modules, goals, self._steps, self._fit)

    def _reason(self, layer: Layer) -> str:
        return layer.reason or self._candidates.left.get(layer.name, "the policy leaves it out")


def _gains(edit: Edit) -> dict[str, int]:
    """The units that the layers of an edit gain, by name."""
    return {change.name: change.width[1] - change.width[0] for change in edit.changes}


class HowMuch(Protocol):
    """How much a model grows: see `To`."""

    exact: bool

    def named(self, layers: Sequence[Layer]) -> frozenset[str]:
        """The layers that are asked for by name."""
        ...

    def goals(self, scope: Scope) -> Mapping[str, float]:
        """The width in the end by layer."""
        ...


@dataclass(frozen=True)
class Climb:
    """The growths of a policy, planned.

    Attributes:
        candidates: The groups that may grow.
        goals: The width in the end by layer, as the policy gave it.
        edits: The growths, none of which is applied.
    """

    candidates: Candidates
    goals: Mapping[str, float]
    edits: tuple[Edit, ...]


def plan_growths(
    model: nn.Module,
    to: HowMuch,
    where: Where,
    steps: int,
    fit: WidthRule,
    measure: Callable[[], MacsCounter] | None = None,
) -> Climb:
    """The growths of a policy, from the widths that the model has now.

    Args:
        model: A growable model.
        to: How much it grows.
        where: The layers that may grow.
        steps: The number of growths.
        fit: The widths that fit.
        measure: Measures the model's multiply-adds, if somebody asks for them.

    Raises:
        FixedWidthError: If no layer may grow, or one that is named cannot.
        ValueError: If names or widths do not fit.
        TypeError: If an answer of the policy is of another type.
    """
    graph = history_of(model).graph
    layers = handle(model).layers
    selection = where.selection(layers)
    named = to.named(layers)
    selection = replace(
        selection,
        named=selection.named | (named if selection.names is None else named & selection.names),
    )
    candidates = find_candidates(graph, selection)
    fit = replace(fit, exact=to.exact)
    scope = Scope(model, candidates, steps, fit, measure or (lambda: MacsCounter(model)))
    goals = dict(to.goals(scope))
    return Climb(candidates, goals, tuple(scope.growths(goals)))
