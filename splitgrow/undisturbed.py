"""Running a model's forward to look at it, and leaving no trace of having done so."""

from __future__ import annotations

import copy
import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Puts the model and the random number generators back as they were, and silences hooks.

    The values of tensors are not kept: do not let the block write into them.
    """
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    python_state = random.getstate()
    numpy: Any = sys.modules.get("numpy")  # only if it is in use
    numpy_state = numpy.random.get_state() if numpy is not None else None
    with torch.random.fork_rng(devices=sorted(devices)), attributes_kept(model):
        silence_hooks(model)
        try:
            yield
        finally:
            random.setstate(python_state)
            if numpy_state is not None:
                numpy.random.set_state(numpy_state)


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Puts every attribute of every module back: forward may set some, and fill containers."""
    stores = ("_parameters", "_buffers", "_modules")
    kept = [
        (module, dict(module.__dict__), {name: dict(module.__dict__[name]) for name in stores})
        for module in model.modules()
    ]
    for module, attributes, _ in kept:
        for name, value in attributes.items():
            if type(value) in (list, dict, set) and name not in stores:
                module.__dict__[name] = copy.copy(value)
    try:
        yield
    finally:
        for module, attributes, contents in kept:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name in stores:
                module.__dict__[name].clear()
                module.__dict__[name].update(contents[name])


def silence_hooks(model: nn.Module) -> None:
    """Takes the user's hooks off, until the attributes are put back."""
    for module in model.modules():
        for name in ("_forward_hooks", "_forward_pre_hooks"):
            module.__dict__[name] = OrderedDict()
