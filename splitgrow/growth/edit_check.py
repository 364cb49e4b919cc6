"""Checking that an edit keeps its promise: the model computes the same before and after."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from splitgrow.analysis.first_difference import Value, ValueWatch, first_difference
from splitgrow.analysis.output_comparison import (
    NotRunnableError,
    compared,
    difference,
    fitting,
    has_values,
    leading,
    outputs_of,
    places_of,
)
from splitgrow.errors import InexactError, SplitGrowWarning
from splitgrow.growth.edit_parts import LayerChange
from splitgrow.growth.edits import Edit
from splitgrow.growth.history import History, show_edit_
from splitgrow.layers.types import Join
from splitgrow.utils.op_numbers import Scalars
from splitgrow.utils.rollback import Undo, temporarily
from splitgrow.utils.source_lines import levels_to_caller


def outputs_after(run: Callable[[], list[Tensor]], history: History, way_out: str) -> list[Tensor]:
    """The outputs of a model after an edit, with the shapes that follow from its graph.

    Args:
        run: Runs the model.
        history: Its history, with the edit.
        way_out: The end of the message of an error.

    Raises:
        InexactError: If it does not run, or has outputs of other shapes.
    """
    try:
        now = run()
    except NotRunnableError as error:
        raise InexactError(f"the model no longer runs afterwards: {error}; {way_out}") from None
    shapes = history.graph.output_shapes({})
    if len(shapes) == len(now) and shapes != [tuple(tensor.shape) for tensor in now]:
        raise InexactError(
            f"its outputs would have the shapes {[tuple(t.shape) for t in now]} instead of "
            f"{shapes}; {way_out}"
        )
    return now


@dataclass(frozen=True)
class Unchanged:
    """A model's results before an edit, on its example inputs in evaluation mode.

    Attributes:
        outputs: The tensors that it returned.
        scalars: The numbers that it passed to its ops.
    """

    outputs: list[Tensor]
    scalars: Scalars

    def check(self, model: nn.Module, history: History) -> None:
        """Makes sure that the model returns the same after the last edit, up to rounding.

        If a layer that makes the model's output grew, the old outputs must come first.

        Raises:
            InexactError: If it does not. The caller then takes the edit back.
        """
        way_out = _way_out(history.edits[-1])
        run = partial(outputs_of, model, fitting(model, history.inputs))
        run = partial(run, touched=history.graph.touched)
        scalars = Scalars()
        now = outputs_after(partial(run, watch=scalars), history, way_out)
        # A loss that balances experts depends on their number.
        experts = any(item.kind == "experts" for item in history.edits[-1].inserted)
        held = [n for n, tensor in enumerate(self.outputs) if tensor.dim() or not experts]
        before, places = [self.outputs[n] for n in held], places_of(self.outputs, now)
        places = [places[n] for n in held if n < len(places)]
        old = leading([now[n] for n in places], before)

        def noisy() -> list[Tensor]:
            again = run(noisy=True)
            return [again[n] for n in places]

        found = compared(old, before, noisy)
        if not found.checkable:
            _tell("it is random, or rounding alone changes it")
            return
        if not found.same:
            place = _first_difference(model, history, found.tolerance)
            raise InexactError(
                f"it would change what the model computes, by {found.difference:.1e} of the "
                f"largest output, where {found.tolerance:.0e} is rounding{place}; {way_out}"
            )
        if experts:
            return  # it has other numbers on purpose, and was rehearsed on other inputs
        given = scalars.unlike(
            self.scalars,
            found.tolerance,
            lambda seen: run(noisy=True, watch=seen),
            more=bool(history.edits[-1].inserted),
        )
        if given:
            raise InexactError(
                f"it would change what the model computes on other inputs: {given}; {way_out}"
            )
        _tell_of_rounding(history, found.difference, partial(_rounding, run, old))

    def moved(self, model: nn.Module, history: History) -> float:
        """How far the model's first output is from the one before, relative to the largest.

        Raises:
            InexactError: If the model no longer runs.
        """
        inputs = fitting(model, history.inputs)
        try:
            now = outputs_of(model, inputs, touched=history.graph.touched)
        except NotRunnableError as error:
            raise InexactError(f"the model no longer runs afterwards: {error}") from None
        return difference(leading(now[:1], self.outputs[:1]), self.outputs[:1])


_ROUGH = (torch.float16, torch.bfloat16)


def _tell_of_rounding(history: History, moved: float, noise: Callable[[], float]) -> None:
    """Warns of the rounding of norms in half precision that make up for channels that joined.

    Args:
        history: The model's history, whose last edit is looked at.
        moved: The difference that the edit has made to the outputs.
        noise: Measures the difference that one unit in the last place of every sum makes.
    """
    edit = history.edits[-1]
    rough = [
        change
        for change in edit.changes
        if change.join == Join.DILUTES.value
        and not _halves(change)
        and any(p.dtype in _ROUGH for p in history.modules[change.path].parameters())
    ]
    if not rough or not moved:
        return
    before, after = rough[0].width
    zeros = {*rough[0].start_ins} == {"zero"}
    warnings.warn(
        f"the outputs on the example inputs have moved by {moved:.1e} of the largest, since "
        f"`{rough[0].name}` and the like make up for {after} channels in place of {before} in half "
        f"precision, where rounding moves them by {noise():.1e} anyhow. Norms make up exactly with "
        f'initializer="duplicate", to {2 * before} channels'
        f"{f', or by zeros to {4 * before}' if zeros else ''}",
        SplitGrowWarning,
        stacklevel=levels_to_caller(),
    )


def _halves(change: LayerChange) -> bool:
    """Whether a norm makes up for zeros by powers of two, which is exact in any precision."""
    before, after = change.width
    return {*change.start_ins} == {"zero"} and after in (4 * before, 16 * before, 64 * before)


def _rounding(run: Callable[..., list[Tensor]], outputs: list[Tensor]) -> float:
    """The difference that one unit in the last place of every sum makes."""
    return difference(leading(run(noisy=True), outputs), outputs)


def _way_out(edit: Edit) -> str:
    own = edit.initializer == "zero"
    return (
        f"it was taken back. {'' if own else f'Initializer {edit.initializer!r} may be wrong. '}"
        f"If the model was changed since it was analysed (a hook, a module's attribute), "
        f"splitgrow.growable(model, example_inputs) finds out what can still grow; `check=False` "
        f"does it all the same"
    )


def before_edit(model: nn.Module, history: History, *, check: bool) -> Unchanged | None:
    """A model's results before an edit; None if there can be none or no check is wanted.

    A model with tensors on the meta device has no values to compare. A model that does not run on
    its example inputs causes a warning.
    """
    if not check or not has_values(model, history.inputs):
        return None
    try:
        inputs, touched = fitting(model, history.inputs), history.graph.touched
        scalars = Scalars()
        return Unchanged(outputs_of(model, inputs, watch=scalars, touched=touched), scalars)
    except NotRunnableError as error:
        _tell(f"the model does not run on its example inputs ({error})")
        return None


def _tell(reason: str) -> None:
    warnings.warn(
        f"what the model computes is not compared before and after the edit: {reason}",
        stacklevel=levels_to_caller(),
    )


def _first_difference(model: nn.Module, history: History, tolerance: float) -> str:
    """The place where values first differ from those without the last edit, for the message."""
    last = history.edits[-1]
    if last.joined or last.absorbed or last.removed or last.removed_layers:  # earlier blocks went
        return ""
    inputs, before = fitting(model, history.inputs), list[Value]()
    touched = history.graph.touched

    def run(seen: Callable[[Value], None]) -> None:
        outputs_of(model, inputs, watch=ValueWatch(model, seen), touched=touched)

    @temporarily
    def run_before(undo: Undo) -> None:
        show_edit_(model, history, history.edits[-1].index - 1, undo)
        run(before.append)

    with suppress(NotRunnableError):
        run_before()
        place = first_difference(run, before, tolerance)
        return f"; {place}" if place else ""
    return ""
