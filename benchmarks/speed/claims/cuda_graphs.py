"""Growth costs no speed in networks that are compiled for a GPU, with CUDA graphs or without."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import splitgrow
from benchmarks.speed.networks import MLP, RESNET_18, grown
from benchmarks.speed.results import Measurement
from benchmarks.speed.settings import Claim, Settings
from benchmarks.speed.steps import compared, training_step

MODES = {"torch.compile": "default", "CUDA graphs": "reduce-overhead"}


def run(settings: Settings) -> Iterator[Measurement]:
    """Each mode, the past frozen."""
    for one in (MLP,) if settings.quick else (MLP, RESNET_18):
        for title, mode in MODES.items():
            torch.compiler.reset()
            model, x = grown(one, settings, 0.125), one.input(settings)
            contestants = {
                "grown": _compiled(model, mode, x),
                "plain": _compiled(splitgrow.merge(model), mode, x),
            }
            yield compared(f"{one.name}, {title}", contestants, settings, "grown", "plain")


def _compiled(model: nn.Module, mode: str, x: Tensor) -> Callable[[], object]:
    model.train()
    model.forward = torch.compile(model.forward, mode=mode)
    step = training_step(model, x)

    def marked() -> None:
        torch.compiler.cudagraph_mark_step_begin()
        step()

    return marked


CLAIM = Claim(
    "cuda-graphs",
    "Training step of a compiled network, the past frozen, every layer 12.5% wider, over that of a "
    'compiled plain network: by default, and with `mode="reduce-overhead"`',
    run,
    needs="cuda",
)
