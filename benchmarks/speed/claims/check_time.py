"""Trying growth out in values costs a few forward passes, and nothing on the meta device."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import torch
from torch import nn

import splitgrow
from benchmarks.speed.results import Measurement, Spread, milliseconds
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.timing import seconds
from benchmarks.vision import torchvision

Call = Callable[[], Any]


def run(settings: Settings) -> Iterator[Measurement]:
    """ResNet-50 on real values, and a Llama of 7 billion parameters on the meta device."""
    size = 64 if settings.quick else 224
    plain = torchvision().models.resnet50().to(settings.device).eval()
    x = torch.randn(1, 3, size, size, device=settings.device)
    for name, prepare in _calls(plain, x, "layer2.1.conv1").items():
        times = _times(settings, prepare, torch.no_grad()(lambda: plain(x)))
        pairs = zip(times["with"], times["without"], times["forward"], strict=True)
        spread = Spread.of([(one - other) / forward for one, other, forward in pairs])
        beside = {key: milliseconds(taken) for key, taken in times.items()}
        yield Measurement(f"ResNet-50, {name}", "ratio", spread, beside)
    if not settings.quick:
        llama, tokens = _llama()
        layer = "model.layers.0.mlp.gate_proj"
        for name, prepare in _calls(llama, tokens, layer).items():
            times = _times(settings, prepare, lambda: None)  # it does not run there
            pairs = zip(times["with"], times["without"], strict=True)
            spread = Spread.of([one / other for one, other in pairs])
            beside = {key: milliseconds(taken) for key, taken in times.items()}
            yield Measurement(
                f"Llama of 7B on meta, {name}, with over without", "ratio", spread, beside
            )


def _calls(plain: nn.Module, x: Any, layer: str) -> dict[str, Callable[[bool], Call]]:
    """What can be checked, made ready to be called once, with the check or without."""

    def analysis(check: bool) -> Call:  # noqa: FBT001
        model = copy.deepcopy(plain)
        return lambda: splitgrow.growable(model, x, check=check)

    def growth(check: bool) -> Call:  # noqa: FBT001
        model: Any = splitgrow.growable(copy.deepcopy(plain), x, check=False)
        return lambda: model.expand_layer(layer, 16, check=check)

    return {"growable": analysis, "expand_layer": growth}


def _times(
    settings: Settings, prepare: Callable[[bool], Call], forward: Call
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {"with": [], "without": [], "forward": []}
    for turn in range(1 + max(3, settings.rounds // 3)):
        gc.collect()
        calls = {"with": prepare(True), "without": prepare(False), "forward": forward}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            taken = {name: seconds(call, settings.device) for name, call in calls.items()}
        for name, second in taken.items():
            if turn:  # the first imports and compiles
                times[name].append(second)
    return times


def _llama() -> tuple[nn.Module, Any]:
    """The shape of Llama 2 7B."""
    transformers = import_module("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        use_cache=False,
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config).eval()
        return model, torch.zeros(1, 16, dtype=torch.long)


CLAIM = Claim(
    "check-time",
    "What `check=True` adds to a call, in forward passes of the model: trying growth out in values "
    "(`growable`), and comparing outputs before and after (`expand_layer`)",
    run,
)
