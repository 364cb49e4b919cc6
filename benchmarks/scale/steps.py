"""Everything that is done with one model, step by step, with the time and memory of each."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

import splitgrow
from benchmarks.scale.models import FAMILIES, Series
from benchmarks.speed.memory import MIB, peak
from splitgrow import SplitGrowError

STEPS = {
    "forward": "a forward pass of the model before it grows",
    "growable": "`growable(model, inputs)`",
    "stream": "`expand_layer` of the residual stream, 12.5 % wider: all blocks read it",
    "inner": "`expand_layer` of the inner units of one block, 12.5 % wider",
    "insert": "`insert_layer` of a copy of one block",
    "prune": "`shrink` of the inner units of all blocks, by the weakest quarter",
    "save": "`save` with its journal",
    "load": "`load` into a fresh model",
    "merge": "`merge`",
    "fuse": "`fuse`",
}


@dataclass(frozen=True)
class Found:
    """One step of one model.

    Attributes:
        step: One of `STEPS`.
        seconds: Of the processor.
        memory: MiB at most on top of what was in use before.
        error: Why it was not done, if it was not.
        parameters: Of the model before it grew.
        model: Its size in MiB.
    """

    step: str
    seconds: float = 0.0
    memory: float = 0.0
    error: str = ""
    parameters: int = 0
    model: float = 0.0


def measured(series: Series, size: tuple[int, int]) -> Iterator[Found]:
    """Does one step after the other with a new model; a step that is refused changes nothing."""
    model, inputs = series.build(size)
    tensors = [*model.parameters(), *model.buffers()]
    told = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "model": sum(t.numel() * t.element_size() for t in tensors) / MIB,
    }
    with TemporaryDirectory() as folder:
        for step, call in _calls(series, size, model, inputs, Path(folder) / "model.safetensors"):
            gc.collect()
            error = ""
            with peak("cpu") as memory:
                started = time.process_time()
                try:
                    call()
                except (SplitGrowError, RuntimeError, MemoryError, RecursionError) as failure:
                    error = _told(failure)
                seconds = time.process_time() - started
            yield Found(step, seconds, 0.0 if error else memory.extra, error, **told)


def _told(failure: Exception) -> str:
    return f"{type(failure).__name__}: {' '.join(str(failure).split())[:300]}"


def _calls(
    series: Series, size: tuple[int, int], model: Any, inputs: dict[str, Any], path: Path
) -> Iterator[tuple[str, Callable[[], object]]]:
    family, valued = FAMILIES[series.family], series.device == "cpu"
    middle = size[0] // 2
    yield "forward", torch.no_grad()(lambda: model(**inputs))
    yield "growable", lambda: splitgrow.growable(model, example_kwargs=inputs)
    if not hasattr(model, "expand_layer"):
        return
    layers = {layer.name: layer for layer in splitgrow.handle(model).layers}
    for step, name in (("stream", family.stream), ("inner", family.inner.format(middle))):
        yield step, lambda name=name: model.expand_layer(name, _part(layers[name], 8))
    yield "insert", lambda: model.insert_layer(family.block.format(middle), "block")
    inner = [family.inner.format(number) for number in range(size[0])]
    units: dict[str, Any] = {name: _part(layers[name], 4) for name in inner}
    if not valued:  # there are no weakest ones
        units = {name: [*range(count)] for name, count in units.items()}
    yield "prune", lambda: model.shrink(units, give_up=True)
    if valued:
        yield "save", lambda: splitgrow.save(model, path)
        fresh, _ = series.build(size)
        yield "load", lambda: splitgrow.load(fresh, path, example_kwargs=inputs)
        del fresh
    # Networks that are made stay until their memory has been read.
    yield "merge", lambda: _kept(splitgrow.merge(model))
    yield "fuse", lambda: _kept(splitgrow.fuse(model))


def _part(layer: Any, share: int) -> int:
    """A share of a layer's units, as whole steps."""
    return max(layer.step, layer.width // share // layer.step * layer.step)


_KEPT: list[nn.Module] = []


def _kept(model: nn.Module) -> None:
    _KEPT[:] = [model]


def warm_up() -> None:
    """Does all steps with tiny models: code that is loaded on first use is no model's time."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for family in FAMILIES:
        for device in ("cpu", "meta"):
            for _ in measured(Series(family, "", "layers", (), device=device), (2, 64)):
                pass
    _KEPT.clear()
    gc.collect()
    gc.freeze()
