"""Modules that add nothing: in the model's runs they return the tensor that they get."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.analysis.output_comparison import (
    NotRunnableError,
    difference,
    fitting,
    has_values,
    outputs_of,
)
from splitgrow.errors import UnsupportedLayerError
from splitgrow.growth.history import History
from splitgrow.utils.example_call import ExampleCall
from splitgrow.utils.preserve import keep_random_states_
from splitgrow.utils.rollback import Undo, temporarily

_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}
_ROUGH = 1e-3


def refuse_busy(model: nn.Module, history: History, name: str, module: nn.Module) -> None:
    """Makes sure that a module adds nothing: on the example inputs, and on noisy ones.

    Args:
        model: The model.
        history: Its history.
        name: The module's path.
        module: The module.

    Raises:
        UnsupportedLayerError: If it does, or cannot be looked at.
    """
    if not has_values(model, history.inputs):
        raise UnsupportedLayerError(
            f"`{name}` cannot be tried out where tensors have no values; only what was inserted "
            f"can be taken out there"
        )
    inputs = fitting(model, history.inputs)
    reason = ""
    for seed in range(3):
        given = inputs if not seed else _noisy(inputs, seed)
        try:
            reason = reason or _busy(model, history, module, given)
        except NotRunnableError as error:
            reason = "" if seed else f"the model does not run on its example inputs ({error})"
    if reason:
        raise UnsupportedLayerError(
            f"`{name}` cannot be taken out: {reason}. A module can go that returns the one tensor "
            f"that it gets, such as a residual block whose branch ends in zeros; so can what "
            f"`insert_layer` inserted, under the path in `edit.inserted`; `shrink` takes units out"
        )


@temporarily
def _busy(
    undo: Undo, model: nn.Module, history: History, module: nn.Module, inputs: ExampleCall
) -> str:
    """Why a module does more than to return its input; empty if it does not.

    Raises:
        NotRunnableError: If the model does not run on these inputs.
    """
    read: list[Tensor | None] = []
    reasons: list[str] = []

    def take(_: nn.Module, args: Any, kwargs: Any) -> None:
        given = next(iter((*args, *kwargs.values())), None)
        read.append(given.detach().clone() if isinstance(given, Tensor) else None)

    def look(_: nn.Module, args: Any, kwargs: Any, made: Any) -> None:
        reasons.append(_more_than_passing(len(args) + len(kwargs), read[-1], made))

    handles = (
        module.register_forward_pre_hook(take, with_kwargs=True),
        module.register_forward_hook(look, with_kwargs=True),
    )
    for handle in handles:
        undo.on_failure(handle.remove)
    outputs_of(model, inputs, touched=history.graph.touched)
    for handle in handles:
        handle.remove()
    if not reasons:
        return "forward does not call it"
    found = next(filter(None, reasons), "")
    if found:
        return found
    keep_random_states_(model.modules(), undo)
    in_training = (_in_training(module, x) for x in read if x is not None)
    return next((f"{reason} in training mode" for reason in in_training if reason), "")


@torch.no_grad()
def _in_training(module: nn.Module, x: Tensor) -> str:
    """Why a copy of a module does more in training mode, as a dropout does; else empty."""
    try:
        made = copy.deepcopy(module).train()(x.clone())
    except Exception:  # noqa: BLE001  # the user's code; it runs in evaluation only
        return ""
    return _more_than_passing(1, x, made)


def _more_than_passing(given: int, x: Tensor | None, made: Any) -> str:
    if given != 1 or x is None:
        return "it gets more than one tensor"
    if not isinstance(made, Tensor):
        return f"it returns a {type(made).__name__}, and no tensor"
    if made.shape != x.shape or made.dtype != x.dtype:
        return f"it makes {tuple(made.shape)} of {tuple(x.shape)}"
    moved = difference([made], [x])
    if moved > _ROUNDING.get(x.dtype, _ROUGH):
        return f"it changes its input, by {moved:.1e} of the largest value"
    return ""


def _noisy(inputs: ExampleCall, seed: int) -> ExampleCall:
    generator = torch.Generator().manual_seed(seed)
    return inputs.map(partial(_other, generator))


def _other(generator: torch.Generator, tensor: Tensor) -> Tensor:
    """Another tensor of the same range: with noise, or the same whole numbers in another order."""
    if tensor.dtype == torch.bool or not tensor.numel():
        return tensor
    if tensor.is_floating_point():
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        return tensor + tensor.abs().max() * noise.to(tensor)
    order = torch.randperm(tensor.numel(), generator=generator).to(tensor.device)
    return tensor.flatten()[order].reshape(tensor.shape)
