"""Comparing a network that was made from a model with that model, on its example inputs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from torch import Tensor, nn

from splitgrow.analysis.output_comparison import (
    Comparison,
    NotRunnableError,
    compared,
    fitting,
    has_values,
    order_of,
    outputs_of,
)
from splitgrow.growth.history import History, view_
from splitgrow.layers.weight_views import keep_storage_
from splitgrow.utils.model_lock import lock_
from splitgrow.utils.rollback import Undo, temporarily
from splitgrow.utils.source_lines import levels_to_caller
from splitgrow.utils.wrappers import several_processes


@dataclass(frozen=True)
class Verdict:
    """Whether a network computes the same as the model.

    Attributes:
        difference: The largest difference, relative to the largest output; 0 if not compared.
        compared: Whether the two could be compared.
        fault: The fault, as a sentence; empty if there is none.
    """

    difference: float
    compared: bool = True
    fault: str = ""


_UNKNOWN = Verdict(0.0, compared=False)


@temporarily
def held_against(
    undo: Undo,
    model: nn.Module,
    history: History,
    generation: int | None,
    network: nn.Module,
    what: str,
    *,
    spread: bool = False,
) -> Verdict:
    """Compares a network with the model that it was made from, both in evaluation mode.

    The bound on rounding follows from the dtype. A difference above it is compared with the effect
    of rounding on either network.

    Args:
        undo: Takes back the changes that the comparison makes to the model.
        model: The model.
        history: Its history.
        generation: The generation that the network was made of.
        network: The network.
        what: How it was made, as a verb, for warnings and errors.
        spread: Whether inserted blocks, and their caches, have their places among the others.
    """
    inputs = fitting(model, history.inputs_at(history.view_of(generation)))
    touched = history.graph.touched
    if not has_values(model, inputs) or several_processes():
        return _UNKNOWN
    lock_(model, history.model_lock, what, undo)
    keep_storage_(model.parameters(), undo)
    if generation is not None:
        view_(model, history, generation, undo)
    try:
        expected = outputs_of(model, inputs, touched=touched)
    except NotRunnableError as error:
        warnings.warn(
            f"{what}: the result is not compared with the model, which does not run on its "
            f"example inputs ({error})",
            stacklevel=levels_to_caller(),
        )
        return _UNKNOWN
    try:
        actual = outputs_of(network, inputs, touched=touched)
    except NotRunnableError as error:
        return Verdict(0.0, fault=f"does not run on the example inputs ({error})")
    order = order_of(actual, expected) if spread else list(range(len(expected)))
    expected = [expected[n] for n in order]
    found = compared(
        actual, expected, lambda: outputs_of(network, inputs, noisy=True, touched=touched)
    )
    if not found.same:
        # The model may round more coarsely, where a folded norm had subtracted much.
        def noisy() -> list[Tensor]:
            moved = outputs_of(model, inputs, noisy=True, touched=touched)
            return [moved[n] for n in order]

        again = compared(expected, actual, noisy)
        found = again if again.same else found
    return Verdict(found.difference, fault=_fault(found))


def _fault(found: Comparison) -> str:
    if found.same:
        return ""
    return (
        f"differs from the model by {found.difference:.1e} of its largest output, where "
        f"{found.tolerance:.0e} is rounding"
    )
