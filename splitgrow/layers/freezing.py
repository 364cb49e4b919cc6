"""Freezing: parameters that no longer train, and running statistics that no longer change."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from splitgrow.utils.rollback import Undo


def hold_statistics(module: nn.Module, args: Any) -> None:  # noqa: ARG001
    """A forward pre-hook: the module uses its running statistics and leaves them as they are.

    It works on every call, so a frozen norm stays frozen after ``model.train()`` and
    ``module.train()``.
    """
    if module.training:
        module.training = False


def held(module: nn.Module) -> bool:
    """Whether a module's running statistics are held."""
    return hold_statistics in module._forward_pre_hooks.values()  # noqa: SLF001


Owned = tuple[nn.Module, str]
"""A parameter, as the module that has it and its name there."""


def parameters_in(owned: Iterable[Owned]) -> list[nn.Parameter]:
    """The parameters that are there today."""
    found = (module._parameters.get(name) for module, name in owned)  # noqa: SLF001
    return [parameter for parameter in found if parameter is not None]


def freeze_(model: nn.Module, undo: Undo) -> list[Owned]:
    """Freezes all parameters and running statistics of a model.

    Returns:
        The parameters that it froze: those that required gradients.
    """
    trained = [
        (module, name)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    gradients = [(parameter, parameter.grad) for parameter in parameters_in(trained)]
    moving = [
        module
        for module in model.modules()
        if module._buffers.get("running_mean") is not None and not held(module)  # noqa: SLF001
    ]
    undo.on_failure(partial(_thaw, gradients, moving))
    for parameter, _ in gradients:
        parameter.requires_grad_(False)
        # Optimizers skip a parameter without gradient, so neither momentum nor decay changes it.
        parameter.grad = None
    for module in moving:
        module.register_forward_pre_hook(hold_statistics)
    return trained


def _thaw(
    gradients: Iterable[tuple[nn.Parameter, Tensor | None]], moving: Iterable[nn.Module]
) -> None:
    for parameter, gradient in gradients:
        parameter.requires_grad_(True)
        parameter.grad = gradient
    for module in moving:
        release_(module)


def show_as_trained_(owned: Iterable[Owned], undo: Undo) -> None:
    """Shows frozen parameters as they were before they were frozen, without recording gradients.

    For a few ops torch picks its kernel by whether the weight requires a gradient, even where none
    is recorded, and the kernels differ in the last bit.
    """
    undo.on_failure(partial(torch.set_grad_enabled, torch.is_grad_enabled()))
    torch.set_grad_enabled(False)
    free_(owned, undo)


def free_(owned: Iterable[Owned], undo: Undo) -> None:
    """Lets parameters require gradients."""
    for parameter in parameters_in(owned):
        undo.on_failure(partial(parameter.requires_grad_, parameter.requires_grad))
        parameter.requires_grad_(True)


def release_(module: nn.Module, *, training: bool | None = None) -> None:
    """Lets a module's running statistics change again, in the given mode."""
    if training is not None:
        module.training = training
    hooks = module._forward_pre_hooks  # noqa: SLF001
    for key in [key for key, hook in hooks.items() if hook is hold_statistics]:
        del hooks[key]


def unfreeze_(model: nn.Module, frozen: Iterable[Owned], undo: Undo) -> None:
    """Undoes `freeze_` for these parameters and for all running statistics."""
    free_(frozen, undo)
    for module in model.modules():
        if held(module):
            let_move_(module, undo, training=model.training)


def let_move_(module: nn.Module, undo: Undo, *, training: bool) -> None:
    """As `release_`, until it is taken back."""
    undo.keep(vars(module), module._forward_pre_hooks)  # noqa: SLF001
    release_(module, training=training)
