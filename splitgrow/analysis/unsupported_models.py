"""Models that cannot be made growable at all, each with the way out."""

from __future__ import annotations

import torch
from torch import nn

from splitgrow.errors import UnsupportedModelError
from splitgrow.utils.adapters import refuse_adapters
from splitgrow.utils.wrappers import is_sharded


def refuse_unsupported(model: nn.Module) -> None:
    """Checks that a model can be made growable.

    Raises:
        UnsupportedModelError: If it is wrapped, compiled, scripted, uninitialised, or has adapters.
    """
    kind = type(model).__name__
    if isinstance(model, nn.DataParallel):
        raise UnsupportedModelError(
            "the model is wrapped in DataParallel; make the module inside growable "
            "(splitgrow.growable(model.module, ...)), and call its methods, as "
            "model.module.expand_layer(...): DataParallel copies the module anew at each call"
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise UnsupportedModelError(
            f"the model is wrapped in {kind}; make the module inside growable "
            f"(splitgrow.growable(model.module, ...)) and grow it by splitgrow.distributed"
        )
    if is_sharded(model):
        raise UnsupportedModelError(
            "FSDP has sharded the model, so that it cannot be run alone to look at it; make it "
            "growable before it is sharded, in every process"
        )
    _refuse_scripted(model)
    refuse_adapters(model, "make the model growable")
    if "_orig_mod" in model._modules:  # noqa: SLF001
        raise UnsupportedModelError(
            "the model is compiled; make the original growable and compile it after each growth"
        )
    lazy = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.lazy.LazyModuleMixin) and module.has_uninitialized_params()  # type: ignore[misc]
    ]
    if lazy:
        raise UnsupportedModelError(
            f"{', '.join(lazy)} {'is' if len(lazy) == 1 else 'are'} not initialised yet; run the "
            f"model once on example inputs first"
        )


def _refuse_scripted(model: nn.Module) -> None:
    if isinstance(model, torch.jit.ScriptModule):
        raise UnsupportedModelError("the model is a ScriptModule; grow it before scripting")
    scripted = [f"`{n}`" for n, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    if scripted:
        raise UnsupportedModelError(
            f"{scripted[0]} is a ScriptModule, which can neither be looked into nor copied; put "
            f"the module that it was made from in its place, and script or trace that after growth"
        )
