"""Traces one run of a model's forward: the ops that it runs, in order, with their places.

The model runs on the example inputs as it is, with fake tensors that have shapes but no values. So
the trace follows control flow on shapes. Where forward asks for values, it runs on real ones. The
trace names every op, every tensor and every number taken from a shape or an attribute.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.backends import mha
from torch.utils import _pytree as pytree

from splitgrow.analysis.leaf_modules import Wider
from splitgrow.analysis.stand_ins import (
    Copies,
    clone,
    set_mode_,
    stand_in_,
    told_apart,
    use_copies_,
)
from splitgrow.analysis.trace import Step
from splitgrow.analysis.trace_recorder import TraceRecorder
from splitgrow.errors import TraceError, UnsupportedLayerError
from splitgrow.utils.assigned_modules import assigned_since, paths_in
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.function_caches import forget_fake_results_
from splitgrow.utils.preserve import ignore_logging_, ignore_warnings_, preserve_
from splitgrow.utils.rollback import Undo, temporarily
from splitgrow.utils.source_lines import failure_of


class _Options(TypedDict):
    training: bool
    fake: bool
    standing_in: bool


@dataclass(frozen=True)
class Trace:
    """The ops of one run, whether it ran on fake tensors, and its recorder."""

    steps: list[Step]
    fake: bool
    recorder: TraceRecorder


def record_wider(
    model: nn.Module, inputs: ExampleCall, wider: Wider, *, training: bool
) -> list[Step]:
    """The ops of a run on fake tensors, as if the model had other widths.

    Raises:
        Exception: Any exception that forward raises at those widths.
    """
    options: _Options = {"training": training, "fake": True, "standing_in": False}
    _, found = _taken_down(model, inputs, lambda: TraceRecorder(wider), options)
    if isinstance(found, Exception):
        raise found
    return found


def trace_model(
    model: nn.Module,
    inputs: ExampleCall,
    *,
    training: bool,
    make: Callable[[], TraceRecorder] | None = None,
) -> Trace:
    """The ops of one run of the model's forward on the example inputs.

    Pure: the model, its buffers, its hooks and the random number generators are afterwards as
    they were.

    Args:
        model: Any module.
        inputs: The example call.
        training: Whether to run in training mode.
        make: Makes the recorder; by default a `TraceRecorder`.

    Raises:
        ValueError: If the model does not run on the inputs.
        TraceError: If it does not run on tensors without values, and there are no others.
        UnsupportedLayerError: If a layer does not fit its registered layer type.
        MemoryError: If there is too little memory.
    """
    inputs.bound(model)  # or it is refused
    tensors = (*model.parameters(), *model.buffers(), *pytree.tree_leaves(inputs))
    valued = not any(isinstance(t, Tensor) and t.is_meta for t in tensors)
    # Forward may ask for values, or tell a layer from its stand-in.
    ways = (
        ((True, True), (False, True), (False, False)) if valued else ((True, True), (True, False))
    )
    failures: list[tuple[str, Exception]] = []
    for fake, standing_in in ways:
        options: _Options = {"training": training, "fake": fake, "standing_in": standing_in}
        recorder, steps = _taken_down(model, inputs, make or TraceRecorder, options)
        if isinstance(steps, Exception):
            failures.append((recorder.inside, steps))
            continue
        if not standing_in:
            reason = told_apart(failures[-1][1])
            recorder.strays = {step.module: reason for step in steps if step.module is not None}
        return Trace(steps, fake, recorder)
    layer, last = failures[-1]
    message = failure_of(model, inputs, last, layer, training=training)
    if not valued:
        raise TraceError(f"{message} (tensors on the meta device have no values)") from last
    raise ValueError(message) from last


def _taken_down(
    model: nn.Module,
    inputs: ExampleCall,
    make: Callable[[], TraceRecorder],
    options: _Options,
) -> tuple[TraceRecorder, list[Step] | Exception]:
    """The recorder of a run, and the ops or the exception of forward.

    A number that is hashed, as a key, is a mere value from there on. Some code (einops) works
    without a hash. So numbers have none at first, and get one at the lines that need it.

    Raises:
        UnsupportedLayerError: If a layer does not fit its registered layer type.
        MemoryError: If there is too little memory.
    """
    hashable: frozenset[str] = frozenset()
    while True:
        recorder = make()
        recorder.hashable = hashable
        try:
            return recorder, _run(model, inputs, recorder, **options)
        except (MemoryError, UnsupportedLayerError):  # no fault of forward's
            raise
        except Exception as error:  # noqa: BLE001 - forward may raise any
            if not recorder.refused:
                return recorder, error
        hashable |= {recorder.refused}


@temporarily
def _run(
    undo: Undo,
    model: nn.Module,
    inputs: ExampleCall,
    recorder: TraceRecorder,
    *,
    training: bool,
    fake: bool,
    standing_in: bool,
) -> list[Step]:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    copied: Callable[[Tensor], Tensor] = mode.from_tensor if fake else clone
    preserve_(model, undo)
    if fake:
        # Torch reports ops that fail on fake tensors there; a run on real ones follows.
        ignore_logging_("torch._subclasses.fake_tensor", undo)
        forget_fake_results_(undo, look=bool(recorder.hashable))
    # Torch's own, about a tensor that pruning or weight norm left in a parameter's place.
    ignore_warnings_("The .grad attribute of a Tensor that is not")
    torch.set_grad_enabled(False)
    # Autocast would keep weights cast to fake tensors, and use them in later runs.
    undo.on_failure(partial(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled()))
    torch.set_autocast_cache_enabled(False)
    # Torch's fused attention asks for an even number of heads, and else runs the ops one by one.
    undo.on_failure(partial(mha.set_fastpath_enabled, mha.get_fastpath_enabled()))
    mha.set_fastpath_enabled(False)
    modules = list(model.named_modules())
    for _, module in modules:
        set_mode_(module, training=training)
    inputs = inputs.map(copied)
    recorder.know(modules)
    recorder.copies = Copies(recorder.owners, copied)
    held = use_copies_(modules, recorder.leaves, partial(recorder.copy_of, copied))
    recorder.given(inputs.tensors(model))
    recorder.standing_in = standing_in
    recorder.prepare(modules, copied)
    stand_in_(model, recorder.stand_ins, undo)
    before = paths_in(model)
    with mode if fake else recorder.created, recorder:
        output = inputs.run(model)
    recorder.finish(output, held)
    recorder.assigned = assigned_since(before, model)
    return recorder.steps
