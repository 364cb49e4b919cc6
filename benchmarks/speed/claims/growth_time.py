"""Growth itself takes no time to speak of: beside gromo, and beside torch.cat by hand."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

import splitgrow
from benchmarks.speed.networks import RESNET_50, VGG, growable, request
from benchmarks.speed.results import Measurement, Spread, milliseconds
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.timing import seconds

_UNITS = 16
_CHANNELS, _SIDE = 256, 14


def run(settings: Settings) -> Iterator[Measurement]:
    """Layers of ResNet-50, then two ways by hand and the nearest peer."""
    yield _of_resnet(settings)
    yield _of_a_pair(settings)
    yield _of_vgg(settings)


def _of_resnet(settings: Settings) -> Measurement:
    """Every layer grown once, one after the other, with an optimizer."""
    times = []
    for _ in range(settings.few):
        model = growable(RESNET_50, settings)
        optimizer = _sgd(model)
        for name, units in request(model, 1e-9).items():  # one step each
            n = -(-_UNITS // units) * units
            taken = seconds(
                lambda: model.expand_layer(name, n, optimizer=optimizer, check=False),  # noqa: B023
                settings.device,
            )
            times.append(1000 * taken)
    return Measurement("ResNet-50, one layer", "ms", Spread.of(times))


def _of_a_pair(settings: Settings) -> Measurement:
    """The first of two convolutions grown."""
    layers = [
        nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False, device=settings.device),
        nn.ReLU(),
        nn.Conv2d(_CHANNELS, _CHANNELS, 3, padding=1, bias=False, device=settings.device),
    ]
    plain = nn.Sequential(*layers)
    x = torch.randn(2, _CHANNELS, _SIDE, _SIDE, device=settings.device)

    def ours() -> Callable[[], object]:
        model: Any = splitgrow.growable(copy.deepcopy(plain), x)
        optimizer = _sgd(model)
        return lambda: model.expand_layer("0", _UNITS, optimizer=optimizer, check=False)

    def by_hand() -> Callable[[], object]:
        model = copy.deepcopy(plain)
        _sgd(model)
        return lambda: (_cat(model, {"0": _UNITS}), _sgd(model))

    ways = {"ours": ours, "torch.cat": by_hand}
    try:
        conv = import_module("gromo.modules.conv2d_growing_module").FullConv2dGrowingModule
    except ImportError:
        beside = {"gromo": "not installed"}
    else:
        beside = {}
        ways[f"gromo {version('gromo')}"] = lambda: _gromo(conv, x)
    times = _in_turn(ways, settings)
    beside |= {name: milliseconds(taken) for name, taken in times.items() if name != "ours"}
    values = Spread.of([1000 * second for second in times["ours"]])
    return Measurement("two convolutions", "ms", values, beside)


def _gromo(conv: Any, x: Tensor) -> Callable[[], object]:
    """The same growth by gromo: its optimizer has to be made anew."""
    shared = {"kernel_size": 3, "padding": 1, "input_size": (_SIDE, _SIDE), "use_bias": False}
    first = conv(
        _CHANNELS, _CHANNELS, **shared, post_layer_function=nn.ReLU(), device=x.device, name="a"
    )
    second = conv(
        _CHANNELS,
        _CHANNELS,
        **shared,
        previous_module=first,
        allow_growing=True,
        device=x.device,
        name="b",
    )
    model = nn.Sequential(first, second)
    model(x)

    def grow() -> None:
        second.create_layer_extensions(
            _UNITS, output_extension_init="kaiming", input_extension_init="zeros"
        )
        second.apply_change(scaling_factor=1.0, apply_delta=False, extension_size=_UNITS)
        second.delete_update(include_previous=True)
        _sgd(model)

    return grow


def _of_vgg(settings: Settings) -> Measurement:
    """Every layer but the last grown in one go."""
    plain = VGG.build(settings)
    x = VGG.input(settings)[:2]
    *inner, (_, last) = [
        (name, layer)
        for name, layer in plain.named_modules()
        if isinstance(layer, (nn.Conv2d, nn.Linear))
    ]
    del last
    asked = {name: max(1, round(layer.weight.shape[0] / 8)) for name, layer in inner}

    def ours() -> Callable[[], object]:
        model: Any = splitgrow.growable(copy.deepcopy(plain), x)
        optimizer = _sgd(model)
        return lambda: model.expand(asked, optimizer=optimizer, check=False)

    def by_hand() -> Callable[[], object]:
        model = copy.deepcopy(plain)
        _sgd(model)
        return lambda: (_cat(model, asked), _sgd(model))

    times = _in_turn({"ours": ours, "torch.cat": by_hand}, settings)
    values = Spread.of([1000 * second for second in times["ours"]])
    beside = {"torch.cat": milliseconds(times["torch.cat"])}
    return Measurement("VGG-16-BN, every layer", "ms", values, beside)


def _in_turn(
    ways: dict[str, Callable[[], Callable[[], object]]], settings: Settings
) -> dict[str, list[float]]:
    """Seconds of calls that can be made only once, so that each round prepares them anew."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(settings.rounds + 1):
        gc.collect()
        for name, prepare in ways.items():
            taken = seconds(prepare(), settings.device)
            if turn:
                times[name].append(taken)
    return times


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


@torch.no_grad()
def _cat(model: nn.Module, units: dict[str, int]) -> None:
    """Growth of a chain of layers as it is done by hand: new tensors, joined by torch.cat."""
    new_inputs = 0
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            if new_inputs:
                _widen(layer, "weight", new_inputs, dim=1)
            new_inputs = units.get(name, 0)
            if new_inputs:
                _widen(layer, "weight", new_inputs, std=layer.weight[0].numel() ** -0.5)
                _widen(layer, "bias", new_inputs)
        elif isinstance(layer, nn.BatchNorm2d) and new_inputs:
            for tensor in ("weight", "running_var"):
                _widen(layer, tensor, new_inputs, mean=1.0)
            for tensor in ("bias", "running_mean"):
                _widen(layer, tensor, new_inputs)
            layer.num_features += new_inputs


def _widen(
    layer: nn.Module, name: str, more: int, *, dim: int = 0, mean: float = 0.0, std: float = 0.0
) -> None:
    value = getattr(layer, name)
    if value is None:
        return
    shape = list(value.shape)
    shape[dim] = more
    wider = torch.cat((value, value.new_empty(shape).normal_(mean, std)), dim)
    setattr(layer, name, nn.Parameter(wider) if isinstance(value, nn.Parameter) else wider)


CLAIM = Claim(
    "growth-time",
    "The time of one growth with an optimizer and `check=False`: a layer, or all; beside it "
    "torch.cat by hand with a new optimizer, and gromo",
    run,
)
