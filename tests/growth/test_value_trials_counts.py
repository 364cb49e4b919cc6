"""How often a call runs the model: on the example inputs, and on tensors without values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

import splitgrow

X = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Block(nn.Module):
    """A residual block that drops out by a function, as decoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.RMSNorm(8), nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.dropout(self.down(F.silu(self.up(self.norm(x)))), 0.1, self.training)


class Decoder(nn.Module):
    """Blocks one after the other, with counts of the runs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = nn.ModuleList(Block() for _ in range(4)), nn.Linear(8, 3)
        self.called: Counter[str] = Counter()

    def forward(self, x: Tensor) -> Tensor:
        """The model, counted."""
        self.called["without values" if isinstance(x, FakeTensor) else "real"] += 1
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Otherwise(Decoder):
    """A decoder that does something else in training."""

    def forward(self, x: Tensor) -> Tensor:
        """The model, counted."""
        return super().forward(x.tanh() if self.training else x)


def runs_of(model: Any, call: Callable[[], object]) -> tuple[int, int]:
    """How often a call runs a model: on real tensors, and on those without values."""
    model.called = counted = Counter[str]()
    call()
    return counted["real"], counted["without values"]


def growable(kind: type[Decoder] = Decoder) -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(kind().double().eval(), X, check=False)


GROWTH: dict[str, Callable[[Any], object]] = {
    "expand_layer": lambda model: model.expand_layer("blocks.0.up", 4),
    "expand": lambda model: model.expand({"blocks.0.up": 4, "blocks.2.up": 4}),
}
INSERTIONS: dict[str, Callable[[Any], object]] = {
    "insert_layer": lambda model: model.insert_layer("blocks.0", "block"),
    "insert_layer at three places": lambda model: model.insert_layer(
        ["blocks.0", "blocks.1", "blocks.3"], "block"
    ),
}


def test_making_a_model_growable_takes_two_real_runs_and_three_without_values() -> None:
    model = Decoder().double().eval()
    assert runs_of(model, lambda: splitgrow.growable(model, X)) == (2, 3)
    assert runs_of(model, lambda: splitgrow.growable(model, X, check=False)) == (0, 3)


def test_it_takes_four_where_training_runs_other_ops() -> None:
    model = Otherwise().double().eval()
    real, _ = runs_of(model, lambda: splitgrow.growable(model, X))
    assert real == 4


@pytest.mark.parametrize("grow", GROWTH.values(), ids=GROWTH.keys())
def test_growth_takes_two_real_runs_and_no_other(grow: Callable[[Any], object]) -> None:
    model = growable()
    assert runs_of(model, lambda: grow(model)) == (2, 0)


def test_insertions_run_the_model_as_often_for_several_places_as_for_one() -> None:
    """Two real runs, and one more that ends at the block of which a copy is tried."""
    for insert in INSERTIONS.values():
        model = growable()
        for _ in range(2):
            assert runs_of(model, lambda: insert(model)) == (3, 3)  # noqa: B023


def test_a_plan_and_unchecked_growth_run_nothing() -> None:
    model = growable()
    assert runs_of(model, lambda: model.plan({"blocks.0.up": 4})) == (0, 0)
    assert runs_of(model, lambda: model.expand_layer("blocks.0.up", 4, check=False)) == (0, 0)


class Scaled(nn.Module):
    """A norm of one's own, which a trace does not look into, and which reads the mode."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(8)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        """An RMS norm in either mode."""
        variance = x.pow(2).mean(-1, keepdim=True)
        if self.training:
            variance = variance.clone()
        return self.weight * (x * torch.rsqrt(variance + self.eps))


@pytest.mark.parametrize(
    "hidden", [Scaled, lambda: nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)]
)
def test_it_takes_four_where_no_trace_shows_what_the_mode_changes(
    hidden: Callable[[], nn.Module],
) -> None:
    model = Decoder()
    model.blocks[1] = hidden()
    model.double().eval()
    real, _ = runs_of(model, lambda: splitgrow.growable(model, X))
    assert real == 4
