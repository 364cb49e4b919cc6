"""Trials of a channel graph in values: the model runs as if all groups that can grow had grown.

Shapes do not show a hook that mixes channels, a wrong rule, a width read by C code, a test of a
layer's type or of the number of parameters, a layer that forward reaches in some other way. So the
model is widened for a moment, as in growth, with helpers at zero and random new units. Its outputs
must stay the same. Halving finds the groups that break this, and they are fixed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from torch import Tensor, nn

from splitgrow.analysis.analyzer import Followed, analyse, try_evaluation
from splitgrow.analysis.channel_graph import ChannelGraph
from splitgrow.analysis.first_difference import Value, ValueWatch, first_difference
from splitgrow.analysis.output_comparison import (
    Comparison,
    NotRunnableError,
    compared,
    fitting,
    has_values,
    hooked,
    leading,
    outputs_of,
)
from splitgrow.analysis.trial_runs import Trial, culprits_in, growing_groups_in, runs_alike
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import structure
from splitgrow.growth.initializers import Stirred, initialise_
from splitgrow.growth.placing import widen_
from splitgrow.growth.planning import plan_changes, plan_numbers
from splitgrow.growth.prepared import prepare
from splitgrow.growth.ways import find_ways
from splitgrow.layers.split_layer import stock
from splitgrow.layers.types import known_layer_type
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.infinite_inputs import Infinities
from splitgrow.utils.op_numbers import Scalars
from splitgrow.utils.preserve import ignore_warnings_, keep_modes_, keep_surroundings_
from splitgrow.utils.rollback import Undo, temporarily
from splitgrow.utils.source_lines import levels_to_caller

_GAINS = (1, 3)
"""The numbers of units that groups gain, in turn."""
_ALIGNED = 16
"""The number of units that a group gains where other numbers fail, as kernels want multiples."""
_CHANGES = "growing it changes what the model computes"
_Result = TypeVar("_Result")


def fix_what_values_break(
    model: nn.Module, inputs: ExampleCall, followed: Followed, edits: int = 0
) -> dict[str, str]:
    """Fixes the groups whose growth would change the model's function.

    Two runs of the model are enough if nothing breaks and its code takes the same steps in training
    as in evaluation; four otherwise. A model without values is left as it is.

    Args:
        model: The model. It is not changed.
        inputs: The example call.
        followed: Its channel graph, and the runs that led to it, with evaluation mode untried.
        edits: The number of edits so far.

    Returns:
        The layers on the groups that it fixed, with the reasons.
    """
    graph = followed.graph
    broken: dict[str, str] = {}
    done = False
    try:
        if growing_groups_in(graph) and has_values(model, inputs):
            done = _fix(model, fitting(model, inputs), followed, edits + 1, broken)
    except NotRunnableError as error:
        _tell(f"the model does not run on its example inputs: {error}")
    except _UncheckableError:
        _tell("the model is random, or rounding alone changes what it computes")
    if not done:
        try_evaluation(model, inputs, followed)
    return broken


def _fix(
    model: nn.Module,
    inputs: ExampleCall,
    followed: Followed,
    edit: int,
    broken: dict[str, str],
) -> bool:
    """Fixes groups in each mode that is to be tried; whether that leaves nothing to be tried.

    Args:
        model: The model.
        inputs: The example call.
        followed: Its channel graph, and the runs that led to it.
        edit: The number of the edit.
        broken: Gets the layers on the groups that are fixed, with the reasons.

    Raises:
        NotRunnableError: If the model does not run in evaluation mode.
        _UncheckableError: If outputs cannot be compared.
    """
    graph, stands = followed.graph, followed.one_trace
    infinities = Infinities(_mixing(model, graph))
    references = _references(model, inputs, infinities, graph.touched, training_first=stands)
    for training, expected, scalars in references:
        broken |= _fix_infinite(graph, infinities.readers)
        trial = _ValueTrial(
            *(model, inputs, graph, expected, scalars, edit, training),
            evaluated=followed.trials[0] if followed.asks and training else None,
        )
        broken |= trial.fix_culprits()
        trial.find_steps()
        if stands and training:
            if not trial.doubts:
                return True
            try_evaluation(model, inputs, followed)
    return not stands


@temporarily
def analyse_again(
    undo: Undo,
    model: nn.Module,
    inputs: ExampleCall,
    broken: Mapping[str, str],
    known: ChannelGraph,
) -> ChannelGraph:
    """The channel graph of a changed model, without the warnings, which came the first time.

    Args:
        undo: Puts the warning filters back.
        model: Any module. It is not changed.
        inputs: The example call.
        broken: The layers whose growth was found to change the model's function, and why.
        known: Its graph before, with the steps that were found in values.
    """
    keep_modes_(undo)
    ignore_warnings_()
    graph = analyse(model, inputs, known)
    for name in broken.keys() & graph.nodes.keys():
        graph.groups.fix(graph.nodes[name].outs, broken[name])
    for group, found in known.multiples.items():
        names = known.makers(group)
        also = (now for now in growing_groups_in(graph) if names & graph.makers(now))
        graph.multiples.update(dict.fromkeys(also, found))
    return graph


def _mixing(model: nn.Module, graph: ChannelGraph) -> dict[str, nn.Module]:
    """The layers that read a group that can grow, and mix its channels."""
    modules = structure(model)
    found = {}
    for node in graph.nodes.values():
        if node.use is not None:  # it reads nothing itself
            continue
        layer = stock(modules[node.name])
        if graph.growing_groups(node.ins) and not known_layer_type(layer).diagonal(layer):
            found[node.name] = modules[node.name]
    return found


def _fix_infinite(graph: ChannelGraph, readers: Iterable[str]) -> dict[str, str]:
    """Fixes the groups with infinite values; returns the layers on them, with the reasons.

    Values of random new units in a trial may be finite where those of old units are infinite.
    """
    broken: dict[str, str] = {}
    for name in readers:
        reason = (
            f"`{name}` reads infinite values or NaN of it on the example inputs, and where a new "
            f"unit gave such a value, zero times that would be NaN"
        )
        for group in graph.growing_groups(graph.nodes[name].ins):
            broken |= graph.fix_group(group, reason)
    return broken


def _references(
    model: nn.Module,
    inputs: ExampleCall,
    infinities: Infinities,
    touched: Collection[str],
    *,
    training_first: bool,
) -> Iterator[tuple[bool, list[Tensor], Scalars]]:
    """The modes to try, whether training, with the model's outputs and its ops' numbers there.

    Where one trace stands for both modes, so does the first run here: in training mode if the model
    runs in it, since norms mix more there.

    Raises:
        NotRunnableError: If the model does not run in evaluation mode.
    """
    for training in (True, False) if training_first else (False, True):
        scalars = Scalars()
        try:
            expected = outputs_of(
                model, inputs, training=training, watch=_Both(scalars, infinities), touched=touched
            )
        except NotRunnableError:
            if not training:
                raise
            continue
        yield training, expected, scalars


@dataclass(frozen=True)
class _Both:
    """Two modes as one."""

    outer: AbstractContextManager[Any]
    inner: AbstractContextManager[Any]

    def __enter__(self) -> None:
        self.outer.__enter__()
        self.inner.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.inner.__exit__(*error)
        self.outer.__exit__(*error)


def _tell(reason: str) -> None:
    warnings.warn(
        f"growth could be tried out by shapes only, not in values: {reason}",
        stacklevel=levels_to_caller(),
    )


class _UncheckableError(Exception):
    """The model's outputs cannot be compared."""


@dataclass(frozen=True)
class _ValueTrial:
    """One mode of a model, and its results there."""

    model: nn.Module
    inputs: ExampleCall
    graph: ChannelGraph
    expected: list[Tensor]
    scalars: Scalars
    edit: int
    training: bool
    failures: list[str] = field(default_factory=list)
    """Why it did not run with small gains, where it ran with multiples."""
    evaluated: Trial | None = None
    """The run in evaluation mode for which this is to stand, if it is to be told whether it can."""
    doubts: list[bool] = field(default_factory=list)
    """Notes that it cannot."""

    def fix_culprits(self) -> dict[str, str]:
        """Fixes the groups that break; returns the layers on them, with the reasons.

        Raises:
            _UncheckableError: If outputs cannot be compared.
        """
        broken: dict[str, str] = {}
        while growing := growing_groups_in(self.graph):
            found = culprits_in(growing, self._difference)
            if not found:
                break
            for group, reason in found.items():
                if len(self.graph.ways.get(group, ())) > 1:  # the next way may hold
                    way, *rest = self.graph.ways[group]
                    self.graph.ways[group] = tuple(rest)
                    self.graph.lost.setdefault(group, {})[way] = reason
                else:
                    broken |= self.graph.fix_group(group, reason)
        return broken

    def find_steps(self) -> None:
        """Finds the groups whose widths kernels want in multiples, and the smallest step of each.

        A kernel may want rows of whole 16 bytes, or pairs of channels.
        """
        if not self.failures:
            return
        found = culprits_in(growing_groups_in(self.graph), self._failure)
        for group, error in found.items():
            for step in (2, 4, 8, _ALIGNED):
                if not self._failure([group], step):
                    self.graph.multiples[group] = step, error
                    break

    def _failure(self, groups: Sequence[int], step: int = 1) -> str:
        """Why the model does not run when groups gain odd multiples of a step; empty if it does."""
        try:
            for gain in _GAINS:
                growth = {g: gain * step * self.graph.unit_step(g) for g in groups}
                self._widened(growth, self._outputs)
        except NotRunnableError as error:
            return str(error)
        return ""

    def _difference(self, groups: Sequence[int]) -> str:
        """The difference in results when groups are wider, in words; empty if there is none.

        Raises:
            _UncheckableError: If outputs cannot be compared.
        """
        growth = {
            group: _GAINS[(group + self.training) % len(_GAINS)] * self.graph.unit_step(group)
            for group in groups
        }
        try:
            found, given = self._widened(growth, partial(self._compared, growth))
        except NotRunnableError as error:
            growth = {group: _ALIGNED * self.graph.unit_step(group) for group in groups}
            try:
                found, given = self._widened(growth, partial(self._compared, growth))
            except NotRunnableError:
                return f"forward fails when it is wider: {error}"
            self.failures.append(str(error))
        if not found.checkable:
            raise _UncheckableError
        if given:
            return f"{_CHANGES}: {given}"
        if found.same:
            return ""
        return self._reason(growth, found.tolerance) if len(groups) == 1 else _CHANGES

    def _outputs(self, **options: Any) -> list[Tensor]:
        options = {"training": self.training, "touched": self.graph.touched, **options}
        return outputs_of(self.model, self.inputs, **options)

    def _widened(self, growth: Mapping[int, int], run: Callable[[], _Result]) -> _Result:
        """The result of a function while the model is wider."""

        @temporarily
        def wider(undo: Undo) -> _Result:
            keep_surroundings_(self.model, undo)
            modules = structure(self.model)
            ways = find_ways(self.graph, growth)
            edit = Edit(
                index=self.edit,
                generation=0,
                closes=None,
                request={},
                growth=growth,
                changes=plan_changes(self.graph, modules, growth, ways),
                numbers=plan_numbers(self.graph, growth),
                ways=ways,
            )
            prepared = prepare(self.model, modules, edit, self.graph)
            initialise_(Stirred(), prepared, undo)
            widen_(prepared, modules, undo)
            return run()

        return wider()

    def _compared(self, growth: Mapping[int, int]) -> tuple[Comparison, str]:
        """Its results against the earlier ones, and the first op that gets another number."""
        scalars = Scalars()
        actual = self._outputs(watch=scalars)
        shapes = self.graph.output_shapes(growth)
        if len(shapes) == len(actual) and shapes != [tuple(t.shape) for t in actual]:
            return Comparison(math.inf, 0.0), ""
        old = leading(actual, self.expected)
        found = compared(old, self.expected, lambda: self._outputs(noisy=True))
        if not (found.same and found.checkable):
            return found, ""
        noisy = partial(self._outputs, noisy=True)
        if self.evaluated is not None and growth.keys() == {*growing_groups_in(self.graph)}:
            alike = runs_alike(self.model, self.inputs, self.evaluated, growth)
            self.doubts.extend(() if alike else (True,))
        return found, scalars.unlike(self.scalars, found.tolerance, lambda seen: noisy(watch=seen))

    def _reason(self, growth: Mapping[int, int], tolerance: float) -> str:
        """Why a group breaks: the place where values first differ, or the hooks that cause it."""
        before: list[Value] = []
        self._outputs(watch=ValueWatch(self.model, before.append))
        hooks = hooked(self.model)
        silent = self._outputs(hooks=False) if hooks else []

        def look() -> str:
            if hooks:
                now = leading(self._outputs(hooks=False), silent)
                if compared(now, silent, lambda: now).same:
                    return f"a hook on {', '.join(map(repr, hooks))} makes the difference"
            return first_difference(
                lambda seen: self._outputs(watch=ValueWatch(self.model, seen)), before, tolerance
            )

        place = ""
        with suppress(NotRunnableError):
            place = self._widened(growth, look)
        return f"{_CHANGES}: {place}" if place else _CHANGES
