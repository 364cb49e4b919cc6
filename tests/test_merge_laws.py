"""What was inserted, in any order and at any places, comes out of merge and fuse as it is."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import Tensor, nn

import splitgrow

KINDS = ("identity", "residual", "gate", "fade", "replacement", "block")
SHARES = (0.0, 0.25, 1.0)


class Block(nn.Module):
    """A residual block, whose copy can be inserted; its argument has a name of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.up = nn.LayerNorm(width), nn.Linear(width, width)
        self.down = nn.Linear(width, width)

    def forward(self, features: Tensor) -> Tensor:
        return features + self.down(self.up(self.norm(features)).relu())


class Scaled(nn.Module):
    """A module with several arguments, one of which goes by its name only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer = nn.Linear(width, width)

    def forward(self, x: Tensor, scale: Tensor | None = None, *, shift: float = 0.0) -> Tensor:
        made = self.layer(x)
        return made + shift if scale is None else made * scale + shift


class Net(nn.Module):
    """Layers, blocks, and a module that is called by the names of its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(4, 6), nn.ReLU()
        self.block = Block(6)
        self.scaled = Scaled(6)
        self.last = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(features=self.act(self.first(x)))
        return self.last(self.scaled(h, h.sigmoid(), shift=0.5))


PLACES: tuple[Any, ...] = (
    "first",
    "block",
    "scaled",
    "last.0",
    "last.2",
    ("first", "block"),
    ("block", "scaled"),
    ("scaled", "last.0"),
    ("last.0", "last.2"),
)
"""Behind layers, behind blocks, and on edges, into modules that are places themselves."""


def given(kind: str, after: Any) -> nn.Module | None:
    """What is to be faded in there."""
    if kind == "fade":
        narrow = {"last.2": 2}.get(after, 6)
        return nn.Linear(narrow, narrow).double()
    if kind == "replacement":
        shape = {"first": (4, 6), "last.2": (6, 2)}.get(after, (6, 6))
        module: nn.Module = Scaled(6) if after == "scaled" else nn.Linear(*shape)
        return module.double()
    return None


def stir(model: nn.Module, seed: int) -> None:
    """Gives everything other values, so that nothing is zero, one or an identity any more."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(0.3 * noise)


def deepened(seed: int, count: int) -> tuple[Any, Tensor, dict[int, Tensor]]:
    """A network that random things were inserted into, and what it made at the end of generations."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    x = torch.randn(3, 4, dtype=torch.float64)
    model: Any = splitgrow.growable(Net().double().eval(), x)
    stir(model, seed)
    before, closed = model(x).detach(), {}
    handle = splitgrow.handle(model)
    while len(handle.edits) < count:
        kind, after = draw.choice(KINDS), draw.choice(PLACES)
        if draw.random() < 0.3:
            after = handle.edits[-1].inserted[0].host if handle.edits else after  # once more there
        opened = handle.generation if handle.edits and draw.random() < 0.5 else None
        try:
            if opened is not None:
                handle.next_generation()
            edit = handle.insert_layer(after, kind, module=given(kind, after))
        except (splitgrow.SplitGrowError, ValueError):
            continue
        if opened is not None or not closed:
            closed[(opened or 0)] = before
        stir_new(model, edit, draw)
        before = model(x).detach()
    return model, x, closed


def stir_new(model: Any, edit: Any, draw: random.Random) -> None:
    """New values for what an edit brought, and a share for its fade."""
    (insertion,) = edit.inserted
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(insertion.name):
                parameter.add_(0.3 * torch.randn_like(parameter))
    for name, module in model.named_modules():
        if name == insertion.name and isinstance(module, splitgrow.FadeIn):
            module.alpha = draw.choice(SHARES)


def left_of_splitgrow(model: nn.Module) -> list[splitgrow.FadeIn]:
    """The fades that are left, if nothing else of splitgrow is."""
    fades = [m for m in model.modules() if isinstance(m, splitgrow.FadeIn)]
    inside = {id(part) for fade in fades for part in fade.modules()}
    others = [m for m in model.modules() if type(m).__module__.startswith("splitgrow")]
    assert {id(module) for module in others} <= inside
    return fades


@pytest.mark.parametrize("seed", range(24))
def test_whatever_was_inserted_wherever_comes_out_of_merge_and_fuse(seed: int) -> None:
    model, x, closed = deepened(seed, count=1 + seed % 5)
    expected = model(x)
    merged = splitgrow.merge(model)
    assert_equal(merged(x), expected)
    assert all(0 < fade.alpha < 1 for fade in left_of_splitgrow(merged))
    assert_equal(splitgrow.fuse(model)(x), expected)
    for generation, before in closed.items():
        with model.at(generation):
            shown = model(x)
        assert torch.equal(shown, before)
        then = splitgrow.merge(model, generation)
        assert torch.equal(then(x), shown)
        assert all(0 < fade.alpha < 1 for fade in left_of_splitgrow(then))
    assert torch.equal(model(x), expected)
