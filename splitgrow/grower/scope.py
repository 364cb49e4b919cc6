"""The scope of a policy: the layers that may change, and the changes that lead to goals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Protocol

from torch import nn

from splitgrow.grower.candidates import Candidates, find_candidates
from splitgrow.grower.ladder import Rung, WidthRule, climb, growing_part
from splitgrow.grower.where import Where
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.layer_list import Layer
from splitgrow.growth.multiply_adds import MacsCounter, grow_copy_
from splitgrow.handle import handle
from splitgrow.pruning.shrinking.copies import shrink_copy_


class Scope:
    """The layers that may grow, and the size that the model would have with some goals.

    Args:
        model: A growable model.
        candidates: The groups that may grow.
        steps: The number of changes that lead to the goals.
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

    def scaled(self, factor: float, goals: Mapping[str, float] | None = None) -> dict[str, float]:
        """The goals that take every group to a multiple of its width.

        Args:
            factor: The multiple.
            goals: Widths to take in place of those that layers have.
        """
        graph = history_of(self._model).graph
        parts = {layer.name: growing_part(graph, graph.nodes[layer.name]) for layer in self.layers}
        widths = goals or {layer.name: layer.width for layer in self.layers}
        return {n: still + factor * (widths[n] - still) for n, (still, _) in parts.items()}

    @cached_property
    def _measure(self) -> MacsCounter:
        return self._measure_it()

    def parameters(self, goals: Mapping[str, float]) -> int:
        """The number of parameters that the model would have.

        Args:
            goals: The width in the end by layer.
        """
        now = sum(parameter.numel() for parameter in self._model.parameters())
        return now + sum(rung.parameters for rung in self.rungs(goals))

    def macs(self, goals: Mapping[str, float]) -> int:
        """The multiply-adds that a forward pass for one sample would have.

        Args:
            goals: The width in the end by layer.
        """
        widths = self.rungs(goals)[-1].widths
        gains = {
            layer.name: widths.get(layer.name, layer.width) - layer.width for layer in self.layers
        }
        asked = {name: units for name, units in gains.items() if units}
        key = tuple(asked.items())
        if key not in self._macs:
            change = change_of(asked, self._fit.initializer.way)
            (self._macs[key],) = self._measure.after([change])
        return self._macs[key]

    def rungs(self, *legs: Mapping[str, float]) -> list[Rung]:
        """The changes that lead to goals, one after the other; none of them is applied.

        Args:
            *legs: The width in the end by layer.

        Raises:
            TypeError: If a goal is no number.
            ValueError: If there is no such layer, it may not change, or has no such width; or some
                layers would grow and others shrink.
        """
        history = history_of(self._model)
        known = {layer.name: layer for layer in self.every}
        for goals in legs:
            for name, goal in goals.items():
                self._check(name, goal, known)
        first, widths = legs[0], {name: known[name].width for name in legs[0]}
        up, down = ([n for n in first if sign * (first[n] - widths[n]) > 0] for sign in (1, -1))
        if up and down:
            raise ValueError(
                f"`{up[0]}` would grow and `{down[0]}` shrink: a policy does one of both at a "
                f"time; use two, one after the other"
            )
        return climb(history.graph, history.modules, legs, self._steps, self._fit)

    def _check(self, name: str, goal: object, known: Mapping[str, Layer]) -> None:
        if name not in known:
            raise ValueError(f"there is no layer {name!r} that could have a goal")
        if isinstance(goal, bool) or not isinstance(goal, (int, float)):
            raise TypeError(f"the goal of `{name}` must be a number, got {goal!r}")
        graph, width = history_of(self._model).graph, known[name].width
        if not self._candidates.of(graph, [name]):
            raise ValueError(f"`{name}` may not grow: {self._reason(known[name])}")
        still, _ = growing_part(graph, graph.nodes[name])
        if not (math.isfinite(goal) and goal > still):
            raise ValueError(f"`{name}` has {width} units, and the goal {goal:g}")

    def _reason(self, layer: Layer) -> str:
        return layer.reason or self._candidates.left.get(layer.name, "the policy leaves it out")


def change_of(request: Mapping[str, int], way: str | None) -> Callable[[nn.Module], None] | None:
    """A change of a copy's widths, of which only the sizes count; None for no change.

    Args:
        request: The units that layers gain, by name; or lose.
        way: The way in which streams grow; None for the preferred one.
    """
    if not request:
        return None
    if min(request.values()) < 0:
        return partial(shrink_copy_, request={name: -units for name, units in request.items()})
    return partial(grow_copy_, request=request, way=way)


class HowMuch(Protocol):
    """How much a model grows: see `To`."""

    exact: bool

    def named(self, layers: Sequence[Layer]) -> frozenset[str]:
        """The layers that are asked for by name."""
        ...

    def legs(self, scope: Scope) -> Sequence[Mapping[str, float]]:
        """The widths by layer that the model has one after the other."""
        ...


@dataclass(frozen=True)
class Climb:
    """The growths and shrinks of a policy, planned.

    Attributes:
        candidates: The groups that may change.
        goals: The width in the end by layer, as the policy gave it.
        rungs: The changes, none of which is applied.
    """

    candidates: Candidates
    goals: Mapping[str, float]
    rungs: tuple[Rung, ...]


def plan_growths(
    model: nn.Module,
    to: HowMuch,
    where: Where,
    steps: int,
    fit: WidthRule,
    measure: Callable[[], MacsCounter] | None = None,
) -> Climb:
    """The changes of a policy, from the widths that the model has now.

    Args:
        model: A growable model.
        to: How much it grows.
        where: The layers that may grow.
        steps: The number of changes on the way to each goal.
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
    legs = [dict(goals) for goals in to.legs(scope)]
    return Climb(candidates, legs[-1], tuple(scope.rungs(*legs)))
