"""An optimizer by name, an average that follows, and the warnings cost a training step nothing.

They are hooks on saving and loading, a list of averages, and a watch that ends at the first step.
The network is small, so that a microsecond in Python would show.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import splitgrow
from benchmarks.speed.networks import linears
from benchmarks.speed.results import Measurement, Spread, milliseconds
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import compared
from benchmarks.speed.timing import seconds

_WIDTHS, _BATCH = (16, 32, 32, 4), 16


def run(settings: Settings) -> Iterator[Measurement]:
    """Training steps of a small grown network, with all of it and with none; the same with EMA."""
    for name, averaged in (("a step", False), ("a step with EMA", True)):
        contestants = {
            "with": _step(settings, told=True, averaged=averaged),
            "without": _step(settings, told=False, averaged=averaged),
        }
        yield compared(f"MLP of 1,600 weights, {name}", contestants, settings, "with", "without")
    for name, times in _states(settings).items():
        yield Measurement(
            f"MLP of 1,600 weights, optimizer.{name}, by name",
            "ms",
            Spread.of([second * 1000 for second in times["by name"]]),
            {"by position": milliseconds(times["by position"])},
        )


def _grown(settings: Settings) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model: Any = linears(_WIDTHS).to(settings.device)
    x = torch.randn(_BATCH, _WIDTHS[0], device=settings.device)
    return splitgrow.growable(model, x), x


def _step(settings: Settings, *, told: bool, averaged: bool) -> Callable[[], object]:
    """A training step after a growth."""
    model, x = _grown(settings)
    optimizer = torch.optim.AdamW(model.parameters())
    average: Any = None
    if told:
        splitgrow.by_name(optimizer, model)
        if averaged:
            average = splitgrow.follow(_average(model), model)
        model.expand({"0": 4, "2": 4}, freeze=False, optimizer=optimizer)
    else:  # both made anew after the growth
        model.expand({"0": 4, "2": 4}, freeze=False)
        optimizer = torch.optim.AdamW(model.parameters())
        average = _average(model) if averaged else None

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        if average is not None:
            average.update_parameters(model)

    return step


def _average(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))


def _states(settings: Settings) -> dict[str, dict[str, list[float]]]:
    """Seconds of saving and of loading an optimizer's state."""
    found: dict[str, dict[str, list[float]]] = {
        name: {"by name": [], "by position": []} for name in ("state_dict", "load_state_dict")
    }
    for kind in ("by position", "by name"):
        model, x = _grown(settings)
        model.expand({"0": 4, "2": 4}, freeze=False)
        optimizer = torch.optim.AdamW(model.parameters())
        if kind == "by name":
            splitgrow.by_name(optimizer, model)
        model(x).sum().backward()
        optimizer.step()
        state = copy.deepcopy(optimizer.state_dict())
        for _ in range(settings.rounds):
            found["state_dict"][kind].append(seconds(optimizer.state_dict, settings.device))
            found["load_state_dict"][kind].append(
                seconds(lambda: optimizer.load_state_dict(state), settings.device)  # noqa: B023
            )
    return found


CLAIM = Claim(
    "beside-training",
    "A training step with `by_name`, `follow` and the warnings over one without, in a small "
    "network; beside it the time that names take when an optimizer is saved or loaded",
    run,
)
