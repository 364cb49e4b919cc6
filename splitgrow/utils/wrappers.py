"""Whether a model is in a wrapper for several processes, which must learn of every change.

DistributedDataParallel lists the parameters when it is made, and fully_shard those of every module.
Growth that they do not learn of would leave new parameters out of the reduction of gradients, and
the processes' weights would drift apart, silently or a step later.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch.distributed
from torch import nn

from splitgrow.errors import UnsupportedModelError
from splitgrow.utils.holders import holder_of
from splitgrow.utils.inert_children import outer_modules

_TOLD: ContextVar[bool] = ContextVar("told", default=False)
_MANAGED = "_is_fsdp_managed_module"
"""The attribute that torch sets on modules whose parameters FSDP gathers and frees."""


@contextmanager
def wrapper_told() -> Iterator[None]:
    """Lets a caller who tells the wrappers change models inside a ``with`` block."""
    before = _TOLD.set(True)
    try:
        yield
    finally:
        _TOLD.reset(before)


def several_processes() -> bool:
    """Whether this process is one of a group that torch.distributed knows."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_managed(module: nn.Module) -> bool:
    """Whether FSDP gathers and frees the parameters of a module.

    Their storage comes and goes. So nothing else may point there, and they not elsewhere.
    """
    return _MANAGED in module.__dict__


def plain_type(layer: type[nn.Module]) -> type[nn.Module]:
    """A module's type without the class that `fully_shard` has put in front of it."""
    unit = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    if unit is None or unit not in layer.__mro__:
        return layer
    plain: type[nn.Module] = layer.__mro__[layer.__mro__.index(unit) + 1]
    return plain


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP has sharded a part of a model."""
    return any([_MANAGED in module.__dict__ for module in outer_modules(model)])  # noqa: C419 - faster


def refuse_wrapped(model: nn.Module, what: str, *, mirrored: bool = True) -> None:
    """Checks that no wrapper would miss a change of a model.

    Args:
        model: The model that is about to change.
        what: The operation, as a verb.
        mirrored: Whether splitgrow.distributed has a function for it.

    Raises:
        UnsupportedModelError: If one would.
    """
    if _TOLD.get():
        return
    use = "use the function of that name in splitgrow.distributed, on what is wrapped, or "
    use = use if mirrored else ""
    if is_sharded(model):
        raise UnsupportedModelError(
            f"cannot {what}: FSDP has sharded the model and would know nothing of it; {use}do it "
            f"before the model is sharded"
        )
    holder = holder_of(model) if several_processes() else None
    if holder is not None:
        use = (use or "do it before that is made, or ") if holder.followed else ""
        raise UnsupportedModelError(
            f"cannot {what}: {holder.holding} and would know nothing of it, so that the ranks "
            f"would drift apart; {use}delete that first and make it anew afterwards"
        )


def refuse_other_holders(model: nn.Module, told: Collection[nn.Module]) -> None:
    """Checks that nothing but the given wrappers holds copies of a model's parameters.

    Args:
        model: The model that is about to change.
        told: The wrappers that learn of the change.

    Raises:
        UnsupportedModelError: If something else does.
    """
    holder = holder_of(model, told)
    if holder is not None:
        way = "pass the outermost wrapper, which must be the only one around the model, or "
        raise UnsupportedModelError(
            f"{holder.holding} and would know nothing of the change, so that the ranks would drift "
            f"apart; {way if holder.followed else ''}delete that first and make it anew afterwards"
        )
