"""Models that have grown: those of the table, and layers of every type between two others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from cases import Case
from helpers import randomise, randomise_new_blocks
from torch import Tensor, nn

import splitgrow


@dataclass(frozen=True)
class Layer:
    """A layer type, what stands before and behind it, and inputs of every rank that it takes."""

    name: str
    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    before: Callable[[], nn.Module]
    behind: Callable[[], nn.Module]
    vocabulary: int = 0
    training: bool = False


def linear() -> nn.Module:
    return nn.Linear(6, 6)


def conv(dims: int, ins: int = 6, outs: int = 6) -> Callable[[], nn.Module]:
    return lambda: (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](ins, outs, 1)


def around(dims: int, build: Callable[[], nn.Module], name: str, **options: Any) -> Layer:
    """A layer on maps, with and without batch."""
    space = (7, 5, 4)[:dims]
    shapes = ((3, 6, *space), (6, *space), (0, 6, *space))
    return Layer(name, build, shapes, conv(dims), conv(dims), **options)


LAYERS = (
    Layer("Linear", linear, ((4, 6), (2, 5, 6), (2, 2, 3, 6), (6,), (0, 6)), linear, linear),
    Layer("Linear, no bias", lambda: nn.Linear(6, 6, bias=False), ((2, 5, 6),), linear, linear),
    *(
        around(dims, lambda kind=kind: kind(6, 6, 3, padding=1), kind.__name__)
        for kinds in (
            (nn.Conv1d, nn.Conv2d, nn.Conv3d),
            (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        )
        for dims, kind in enumerate(kinds, 1)
    ),
    around(2, lambda: nn.Conv2d(6, 6, 1, bias=False), "Conv2d, pointwise"),
    around(1, lambda: nn.Conv1d(6, 6, 1, stride=2), "Conv1d, pointwise, stride"),
    around(2, lambda: nn.Conv2d(6, 6, 3, groups=6, dilation=2), "Conv2d, depthwise"),
    around(2, lambda: nn.Conv2d(6, 6, 3, groups=2, stride=2), "Conv2d, groups"),
    around(1, lambda: nn.Conv1d(6, 6, 3, padding=1, padding_mode="circular"), "Conv1d, circular"),
    around(2, lambda: nn.Conv2d(6, 6, (3, 2), padding="same"), "Conv2d, same"),
    around(2, lambda: nn.ConvTranspose2d(6, 6, 2, 2, groups=6), "ConvTranspose2d, depthwise"),
    Layer("BatchNorm1d", lambda: nn.BatchNorm1d(6), ((4, 6), (3, 6, 5), (0, 6)), linear, linear),
    *(
        Layer(
            f"BatchNorm{d}d",
            lambda d=d: (nn.BatchNorm2d, nn.BatchNorm3d)[d - 2](6),
            ((3, 6, 4, 3, 2)[: d + 2],),
            conv(d),
            conv(d),
        )
        for d in (2, 3)
    ),
    around(1, lambda: nn.InstanceNorm1d(6, affine=True), "InstanceNorm1d"),
    around(2, lambda: nn.InstanceNorm2d(6, track_running_stats=True), "InstanceNorm2d"),
    Layer("GroupNorm", lambda: nn.GroupNorm(3, 6), ((3, 6, 4, 4), (0, 6, 4, 4)), conv(2), conv(2)),
    Layer("PReLU", lambda: nn.PReLU(6), ((4, 6), (2, 6, 5), (2, 6, 3, 3), (0, 6)), linear, linear),
    Layer("GRUCell", lambda: nn.GRUCell(6, 6), ((4, 6), (6,), (0, 6)), linear, linear),
    Layer("RNNCell", lambda: nn.RNNCell(6, 6, False, "relu"), ((4, 6), (6,)), linear, linear),
    Layer("RMSNorm", lambda: nn.RMSNorm(6), ((4, 6), (2, 5, 6), (6,), (0, 6)), linear, linear),
    Layer(
        "Embedding",
        lambda: nn.Embedding(9, 6, padding_idx=2),
        ((4,), (2, 5), (), (0,)),
        nn.Identity,
        linear,
        vocabulary=9,
    ),
    Layer(
        "EmbeddingBag",
        lambda: nn.EmbeddingBag(9, 6, mode="sum"),
        ((4, 3), (2, 5)),
        nn.Identity,
        linear,
        vocabulary=9,
    ),
)


def grown(layer: Layer, *, freeze: bool = True) -> Any:
    """The layer, grown twice at both ends; its blocks have values that matter."""
    torch.manual_seed(0)
    model: Any = nn.Sequential(layer.before(), layer.build(), layer.behind()).double().eval()
    shape = layer.shapes[0]
    x = torch.zeros(shape, dtype=torch.long) if layer.vocabulary else torch.randn(shape).double()
    model = splitgrow.growable(randomise(model), x)
    for turn in range(2):
        for name in dict.fromkeys(layer.name for layer in model.layers if layer.growable):
            if name != "2":
                step = next(item.step for item in model.layers if item.name == name)
                model.expand_layer(name, step, freeze=freeze)
        if freeze and turn == 0:
            model.next_generation()
    randomise_new_blocks(model)
    return model[1]


def input_of(layer: Layer, split: Any, shape: tuple[int, ...]) -> Tensor:
    generator = torch.manual_seed(2)
    if layer.vocabulary:
        return torch.randint(layer.vocabulary, shape, generator=generator)
    inputs = split.sizes()[0]
    shape = tuple(inputs if size == 6 else size for size in shape)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def grown_case(case: Case, rounds: int = 3, **options: Any) -> tuple[Any, tuple[Tensor, ...]]:
    """A model each of whose layers has grown several times."""
    model = randomise(case.model()).double()
    inputs = tuple(x.double() if x.is_floating_point() else x for x in case.inputs())
    model = splitgrow.growable(model, inputs)
    for _ in range(rounds):
        for layer in model.layers:
            if layer.growable:
                model.expand_layer(layer.name, layer.step, **options)
    randomise_new_blocks(model)
    return model, inputs
