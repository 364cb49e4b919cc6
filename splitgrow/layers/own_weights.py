"""Layers with weights of their own in place of weights that are computed from others."""

from __future__ import annotations

from torch import nn

from splitgrow.layers.types import layer_type_of
from splitgrow.layers.types.parametrized_layers import (
    PARAMETRIZATIONS,
    own_tensors,
    parametrizations_of,
)


def leave_computed_(model: nn.Module) -> None:
    """Gives layers the tensors that their parametrizations compute now, as Parameters of their own.

    Only where these could grow: parametrizations with values that calls change stay.

    Args:
        model: A model that nobody else holds.
    """
    for module in list(model.modules()):
        made = parametrizations_of(module)
        if not made or layer_type_of(module) is None:
            continue
        found = {
            name: nn.Parameter(
                getattr(module, name).detach().clone(),
                requires_grad=any(own.requires_grad for own in own_tensors(module, name)),
            )
            for name in made
        }
        # Not by torch's remove_parametrizations: that changes the class, which copies share.
        del module._modules[PARAMETRIZATIONS]  # noqa: SLF001
        module.__class__ = type(module).__mro__[1]
        others = dict(module._parameters)  # noqa: SLF001
        module._parameters.clear()  # noqa: SLF001
        module._parameters.update({**found, **others})  # noqa: SLF001
