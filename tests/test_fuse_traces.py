"""Where torch.fx would trace something else than forward computes, the model is merged instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import Tensor, fx, nn

import splitgrow
from splitgrow import fusion

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Keeps(nn.Module):
    """A forward that a test wrote, between two layers, with a buffer and a counter."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(5, 6), nn.Linear(6, 3), forward
        self.register_buffer("n", torch.zeros((), dtype=torch.float64))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.a(x)))


def assigns_a_buffer(m: Any, h: Tensor) -> Tensor:
    m.n = m.n + 1
    return h * m.n


def assigns_an_attribute(m: Any, h: Tensor) -> Tensor:
    seen = getattr(m, "seen", 0.0)
    m.seen = h.new_ones(()) + seen
    return h + seen


def looks_a_size_up(m: Any, h: Tensor) -> Tensor:
    return h * {4: 1.0}.get(h.size(0), 2.0)


def spells_a_size_out(m: Any, h: Tensor) -> Tensor:
    return h * len(str(h.size(0)))


def finds_a_size(m: Any, h: Tensor) -> Tensor:
    return h if h.size(0) in {4} else -h


def writes_into_a_buffer(m: Any, h: Tensor) -> Tensor:
    m.n.add_(1)
    return h * m.n


def counts(m: Any, h: Tensor) -> Tensor:
    m.calls += 1
    return h


def made(forward: Any) -> Any:
    torch.manual_seed(0)
    model: Any = splitgrow.growable(Keeps(forward).double().eval(), X)
    model.expand_layer("a", 2)
    return model


def calls(model: nn.Module) -> list[Tensor]:
    with torch.no_grad():
        return [model(X).clone() for _ in range(3)]


@pytest.mark.parametrize(
    "forward",
    [
        assigns_a_buffer,
        assigns_an_attribute,
        looks_a_size_up,
        spells_a_size_out,
        finds_a_size,
    ],
)
def test_what_a_graph_cannot_hold_is_merged_with_a_warning(forward):
    model = made(forward)
    with pytest.warns(UserWarning, match="merged, not fused"):
        fused = splitgrow.fuse(model)
    assert not isinstance(fused, fx.GraphModule)
    assert_equal(calls(fused), calls(splitgrow.merge(model).eval()))


@pytest.mark.parametrize("forward", [writes_into_a_buffer, counts])
def test_control_what_a_graph_can_hold_is_fused(forward):
    model = made(forward)
    fused = splitgrow.fuse(model)
    assert isinstance(fused, fx.GraphModule)
    assert_equal(calls(fused), calls(splitgrow.merge(model).eval()))


def test_the_model_stays_as_it_was():
    model = made(writes_into_a_buffer)
    splitgrow.fuse(model)
    splitgrow.merge(model)
    assert model.n.item() == 0


def test_a_pass_that_is_wrong_is_still_reported(monkeypatch):
    def wrong(network: fx.GraphModule) -> None:
        network.a.bias.data.add_(1)

    monkeypatch.setattr(fusion, "PASSES", (*fusion.PASSES, wrong))
    with pytest.raises(splitgrow.SplitGrowError, match="report this"):
        splitgrow.fuse(made(counts))
