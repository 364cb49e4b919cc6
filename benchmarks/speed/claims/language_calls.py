"""Calls on a language model cost a few of its forward passes."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

import splitgrow
from benchmarks.speed.memory import peak
from benchmarks.speed.results import Measurement, Spread, milliseconds
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.timing import ratio, seconds
from benchmarks.vision import torchvision

_LAYER = "model.layers.0.mlp.gate_proj"


def run(settings: Settings) -> Iterator[Measurement]:
    """A Llama of 54 million parameters, and the shape of one of 7 billion on the meta device."""
    pristine, tokens = _llama(settings)
    name = "Llama of 0.2M" if settings.quick else "Llama of 54M"
    times: dict[str, list[float]] = {}
    extra: dict[str, list[float]] = {}
    for turn in range(1 + max(1, settings.rounds // 3)):
        found, memory = _turn(settings, pristine, tokens)
        if turn:  # the first imports and compiles
            for call, second in found.items():
                times.setdefault(call, []).append(second)
            for call, mebibytes in memory.items():
                extra.setdefault(call, []).append(mebibytes)
    for call in times:
        if call == "forward":
            continue
        beside = {each: milliseconds(times[each]) for each in (call, "forward")}
        if call in extra:
            of_forward = Spread.of(extra["forward"]).median
            beside |= {
                "memory": f"{Spread.of(extra[call]).median:.0f} MiB",
                "memory of the forward": f"{of_forward:.0f} MiB",
            }
        yield Measurement(f"{name}, {call}", "ratio", ratio(times, call, "forward"), beside)
    if not settings.quick:
        yield _on_meta(settings)


def _turn(
    settings: Settings, pristine: nn.Module, tokens: Tensor
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of each call, and the memory that two of them take beside the model."""
    device, blocks = settings.device, 2 if settings.quick else 12
    found: dict[str, float] = {}
    memory: dict[str, float] = {}
    model: Any = copy.deepcopy(pristine)
    calls = {
        "forward": torch.no_grad()(lambda: pristine(tokens)),
        "growable": lambda: splitgrow.growable(model, (tokens,)),
        "plan": lambda: model.plan({_LAYER: 16}),
        "expand_layer": lambda: model.expand_layer(_LAYER, 16),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, call in calls.items():
            gc.collect()
            with peak(device) as used:
                found[name] = seconds(call, device)
            if name in ("forward", "growable"):
                memory[name] = used.extra
        for name, places in (
            ("insert_layer, one block", ["model.layers.0"]),
            (f"insert_layer, {blocks} blocks", [f"model.layers.{n}" for n in range(blocks)]),
        ):
            other: Any = splitgrow.growable(copy.deepcopy(pristine), (tokens,), check=False)
            gc.collect()
            found[name] = seconds(lambda: other.insert_layer(places, "block"), device)  # noqa: B023
    return found, memory


def _on_meta(settings: Settings) -> Measurement:
    """Analysing the shape of Llama 2 7B."""
    found = []
    for turn in range(1 + settings.few):
        model, tokens = _llama_7b()
        gc.collect()
        taken = seconds(lambda: splitgrow.growable(model, tokens), settings.device)  # noqa: B023
        found += [taken] if turn else []
    spread = Spread.of([1000 * second for second in found])
    return Measurement("Llama of 7B on meta, growable", "ms", spread)


def _llama(settings: Settings) -> tuple[nn.Module, Tensor]:
    torchvision()  # transformers imports it
    transformers = import_module("transformers")
    sizes = (
        {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 3}
        if settings.quick
        else {
            "vocab_size": 3200,
            "hidden_size": 512,
            "intermediate_size": 1376,
            "num_hidden_layers": 16,
        }
    )
    config = transformers.LlamaConfig(**sizes, num_attention_heads=8, use_cache=False)
    model = transformers.LlamaForCausalLM(config).to(settings.device).eval()
    shape = (2, 16) if settings.quick else (4, 128)
    return model, torch.randint(0, 256, shape, device=settings.device)


def _llama_7b() -> tuple[nn.Module, Tensor]:
    transformers = import_module("transformers")
    config = transformers.LlamaConfig(use_cache=False)  # the library's own sizes are those of 7B
    with torch.device("meta"):
        return transformers.LlamaForCausalLM(config).eval(), torch.zeros(1, 16, dtype=torch.long)


CLAIM = Claim(
    "language-model-calls",
    "Calls on a Llama of 54 million parameters over its forward pass on the same 512 tokens: "
    "`growable`, `plan`, `expand_layer`, `insert_layer` with one block and with 12 at once; "
    "and `growable` on the shape of Llama 2 7B on the meta device",
    run,
)
