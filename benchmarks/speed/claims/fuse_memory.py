"""Fusing takes the fused network's memory and little more.

Measured without the check of the outputs (``check=False``), which runs both networks and takes the
memory of a forward pass.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

import splitgrow
from benchmarks.speed.child import in_child
from benchmarks.speed.memory import MIB, peak
from benchmarks.speed.networks import request
from benchmarks.speed.results import Measurement, Spread
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import stated
from benchmarks.speed.timing import paired
from benchmarks.vision import torchvision


def run(settings: Settings) -> Iterator[Measurement]:
    """ResNet-152, every layer grown by an eighth."""
    found = [in_child(of_fusing, settings) for _ in range(settings.few)]
    beside = {
        "the model": f"{found[0]['model']:.0f} MiB",
        "fused": f"{found[0]['fused']:.0f} MiB",
        "its largest layer": f"{found[0]['largest']:.0f} MiB",
    }
    values = [one["extra"] - one["fused"] - one["largest"] for one in found]
    yield Measurement("memory", "MiB", Spread.of(values), beside)

    model = _model(settings)
    merged = splitgrow.merge(model)
    weights = list(merged.state_dict().values())
    copies = {
        "deepcopy": lambda: copy.deepcopy(merged),
        "deepcopy of the weights": lambda: copy.deepcopy(weights),
    }
    for case, check in (("time", False), ("time, with the check", True)):
        fusing = {"fuse": partial(splitgrow.fuse, model, check=check)}
        times = paired({**fusing, **copies}, settings)
        yield stated(case, times, "fuse", "deepcopy", ("deepcopy of the weights",))


def of_fusing(settings: Settings) -> dict[str, float]:
    """Extra peak memory of fusing, and the sizes that it is to be compared with."""
    model = _model(settings)
    with peak(settings.device) as found:
        fused = splitgrow.fuse(model, check=False)
    return {
        "extra": found.extra,
        "model": _size(model),
        "fused": _size(fused),
        "largest": max(
            tensor.numel() * tensor.element_size() / MIB for tensor in fused.state_dict().values()
        ),
    }


def _model(settings: Settings) -> nn.Module:
    """A grown network that has run, as what is fused has trained before."""
    name = "resnet18" if settings.quick else "resnet152"
    torch.manual_seed(0)
    model: nn.Module = torchvision().models.get_model(name, weights=None).to(settings.device)
    x = torch.randn(2, 3, 64, 64, device=settings.device)
    model = splitgrow.growable(model, x)
    splitgrow.handle(model).expand(request(model, 0.125))
    model(x)
    return model.eval()


def _size(model: nn.Module) -> float:
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / MIB


CLAIM = Claim(
    "fuse-memory",
    "ResNet-152: peak memory of `splitgrow.fuse(grown, check=False)` on top of the model, the "
    "fused network and the weights of its largest layer; its time over one deepcopy of the merged "
    "network",
    run,
)
