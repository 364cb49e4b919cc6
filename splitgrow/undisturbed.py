"""Running a model's forward to look at it, and leaving no trace of having done so."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Puts the model and the random number generators back as they were, and silences hooks.

    The values of tensors are not kept: do not let the block write into them.
    """
    modules = _modules_of(model)
    own = (p for module in modules for p in module._parameters.values())  # noqa: SLF001
    devices = {p.device.index for p in own if p is not None and p.device.type == "cuda"}
    python_state = random.getstate()
    numpy: Any = sys.modules.get("numpy")  # only if it is in use
    numpy_state = numpy.random.get_state() if numpy is not None else None
    with torch.random.fork_rng(devices=sorted(devices)), attributes_kept(modules):
        silence_hooks(modules)
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy_state is not None:
                numpy.random.set_state(numpy_state)


def _modules_of(model: nn.Module) -> list[nn.Module]:
    """All modules of a model, each once."""
    found, seen = [model], {id(model)}
    for module in found:  # it grows on the way
        for child in module._modules.values():  # noqa: SLF001
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                found.append(child)
    return found


_STORES = ("_parameters", "_buffers", "_modules")
_CONTAINERS = (list, dict, set)


@contextmanager
def attributes_kept(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Puts every attribute of the modules back: forward may set some, and fill containers."""
    kept = []
    for module in modules:
        own = module.__dict__
        stores = [own[name] for name in _STORES]
        kept.append((own, own.copy(), [(store, store.copy()) for store in stores]))
        for name, value in own.items():
            if type(value) in _CONTAINERS and name not in _STORES:
                own[name] = value.copy()
    try:
        yield
    finally:
        for own, attributes, contents in kept:
            own.clear()
            own.update(attributes)
            for store, content in contents:
                store.clear()
                store.update(content)


def silence_hooks(modules: Sequence[nn.Module]) -> None:
    """Takes the user's hooks off, until the attributes are put back."""
    for module in modules:
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            module.__dict__[name] = OrderedDict()
