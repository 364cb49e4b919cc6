"""Growing a large layer takes memory for what is added, not for the layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

import splitgrow
from benchmarks.speed.child import in_child
from benchmarks.speed.memory import MIB, peak
from benchmarks.speed.results import Measurement, Spread
from benchmarks.speed.settings import Claim, Settings

_WIDTH, _QUICK_WIDTH, _UNITS = 16384, 2048, 16


def run(settings: Settings) -> Iterator[Measurement]:
    """A Linear of 1 GiB, grown by 16 units, which are 1 MiB."""
    ours, theirs = [
        [in_child(way, settings) for _ in range(settings.few)] for way in (by_growth, by_cat)
    ]
    weights = ours[0]["weights"]
    for name, title in (("growth", "growth"), ("forward", "forward pass after it")):
        yield Measurement(
            f"Linear, {title}",
            "MiB",
            Spread.of([found[name] for found in ours]),
            {
                "torch.cat": f"{Spread.of([found[name] for found in theirs]).median:.1f} MiB",
                "the layer": f"{weights:.0f} MiB",
            },
        )


def by_growth(settings: Settings) -> dict[str, float]:
    """Extra peak memory of our growth, and of a forward pass after it."""
    model, x = _model(settings)
    model = splitgrow.growable(model, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return _measured(
        model, x, settings, lambda: model.expand_layer("0", _UNITS, optimizer=optimizer)
    )


def by_cat(settings: Settings) -> dict[str, float]:
    """The same for new weights made by torch.cat, and a new optimizer."""
    model, x = _model(settings)

    def grow() -> None:
        first, last = model[0], model[2]
        _set(first, "weight", torch.cat((first.weight.data, _new(_UNITS, x.shape[1], x))))
        _set(first, "bias", torch.cat((first.bias.data, _new(1, _UNITS, x)[0])))
        _set(last, "weight", torch.cat((last.weight.data, _new(_UNITS, _UNITS, x)), dim=1))
        torch.optim.SGD(model.parameters(), lr=0.1)

    return _measured(model, x, settings, grow)


def _model(settings: Settings) -> tuple[Any, Tensor]:
    width = _QUICK_WIDTH if settings.quick else _WIDTH
    with torch.device(settings.device):
        model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, _UNITS))
        x = torch.randn(4, width)
    with torch.no_grad():
        model(x)  # what the first call allocates for good is not growth's
    return model, x


def _measured(model: Any, x: Tensor, settings: Settings, grow: Any) -> dict[str, float]:
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / MIB
    with peak(settings.device) as growth:
        grow()
    with peak(settings.device) as forward, torch.no_grad():
        model(x)
    return {"growth": growth.extra, "forward": forward.extra, "weights": weights}


def _new(rows: int, columns: int, like: Tensor) -> Tensor:
    return like.new_empty(rows, columns).normal_()


def _set(layer: nn.Module, name: str, value: Tensor) -> None:
    setattr(layer, name, nn.Parameter(value))


CLAIM = Claim(
    "growth-memory",
    "Peak memory on top of the model, growing a Linear of 16384 by 16384 (1 GiB) by 16 units",
    run,
)
