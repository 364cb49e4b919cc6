"""Freezing and holding still: parameters that no longer train, statistics that no longer move."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from splitgrow.undo import Undo


def hold_statistics(module: nn.Module, args: Any) -> None:  # noqa: ARG001
    """A forward pre-hook: the module uses its running statistics and leaves them as they are.

    It works on every call, so neither ``model.train()`` nor ``module.train()`` sets a frozen norm
    in motion again.
    """
    if module.training:
        module.training = False


def held(module: nn.Module) -> bool:
    """Whether a module's running statistics are held."""
    return hold_statistics in module._forward_pre_hooks.values()  # noqa: SLF001


def freeze_(model: nn.Module, undo: Undo) -> list[nn.Parameter]:
    """Freezes all parameters and running statistics of a model.

    Returns:
        The parameters that it froze: those that were to be trained.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        _freeze_parameter(parameter, undo)
    for module in model.modules():
        if module._buffers.get("running_mean") is not None and not held(module):  # noqa: SLF001
            undo.on_failure(lambda module=module: release_(module))  # type: ignore[misc]
            module.register_forward_pre_hook(hold_statistics)
    return trained


def _freeze_parameter(parameter: nn.Parameter, undo: Undo) -> None:
    gradient = parameter.grad

    def thaw() -> None:
        parameter.requires_grad_(True)
        parameter.grad = gradient

    undo.on_failure(thaw)
    parameter.requires_grad_(False)
    # Optimizers pass over a parameter without gradient, so neither momentum nor decay moves it.
    parameter.grad = None


def release_(module: nn.Module) -> None:
    """Lets a module's running statistics move again."""
    hooks = module._forward_pre_hooks  # noqa: SLF001
    for key in [key for key, hook in hooks.items() if hook is hold_statistics]:
        del hooks[key]


def unfreeze_(model: nn.Module, frozen: Iterable[nn.Parameter]) -> None:
    """Takes back what `freeze_` did to these parameters and to all running statistics."""
    for parameter in frozen:
        parameter.requires_grad_(True)
    for module in model.modules():
        if held(module):
            release_(module)
            module.training = model.training
