"""If torch.fx's trace would compute something else than forward, the model is merged instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import assert_equal
from torch import Tensor, fx, nn

import splitgrow
from splitgrow.deploy import fuse as fusion

X = torch.randn(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Keeps(nn.Module):
    """A forward that a test wrote, between two layers, with a buffer and a counter."""

    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Linear(5, 8), nn.Linear(8, 3), forward
        self.register_buffer("n", torch.zeros((), dtype=torch.float64))
        self.calls, self.seen, self.table, self.meter = 0, [], {}, Meter()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.a(x)))


def assigns_a_buffer(m: Any, h: Tensor) -> Tensor:
    m.n = m.n + 1
    return h * m.n


def assigns_an_attribute(m: Any, h: Tensor) -> Tensor:
    seen = getattr(m, "last", 0.0)
    m.last = h.new_ones(()) + seen
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


def counts_and_adds(m: Any, h: Tensor) -> Tensor:
    m.calls += 1
    return h + m.calls


def turns_every_other_time(m: Any, h: Tensor) -> Tensor:
    m.turned = not getattr(m, "turned", False)
    return -h if m.turned else h


def keeps_a_list(m: Any, h: Tensor) -> Tensor:
    m.seen.append(h.dim())
    return h * len(m.seen)


def keeps_a_table(m: Any, h: Tensor) -> Tensor:
    m.table["n"] = m.table.get("n", 0) + 1
    return h * m.table["n"]


def keeps_a_number_in_a_layer(m: Any, h: Tensor) -> Tensor:
    m.b.uses = getattr(m.b, "uses", 0) + 1
    return h * m.b.uses


def keeps_a_number_in_an_object(m: Any, h: Tensor) -> Tensor:
    m.meter.n += 1
    return h * m.meter.n


def makes_a_tensor_of_a_count(m: Any, h: Tensor) -> Tensor:
    m.calls += 1
    return h + torch.tensor(float(m.calls), dtype=torch.float64)


def keeps_a_cache(m: Any, h: Tensor) -> Tensor:
    if "bias" not in m.table:
        m.table["bias"] = m.n + torch.linspace(0, 1, 8, dtype=torch.float64)
    return h + m.table["bias"]


def keeps_a_list_that_nothing_reads(m: Any, h: Tensor) -> Tensor:
    m.seen.append(h.dim())
    return h * 2


def sums_into_a_new_tensor(m: Any, h: Tensor) -> Tensor:
    total = torch.zeros(8, dtype=torch.float64)
    total += h.mean(0)
    return h + total


def adds_to_a_new_tensor(m: Any, h: Tensor) -> Tensor:
    return h + torch.ones(8, dtype=torch.float64).add_(h.mean(0))


def sets_a_row_of_a_new_tensor(m: Any, h: Tensor) -> Tensor:
    rows = torch.zeros(2, 8, dtype=torch.float64)
    rows[0] = h.mean(0) + rows[0]
    return h + rows.sum(0)


def writes_through_a_view_of_a_new_tensor(m: Any, h: Tensor) -> Tensor:
    new = torch.zeros(8, 1, dtype=torch.float64)
    new.view(8).add_(h.mean(0))
    return h + new[:, 0]


def gives_a_new_tensor_as_out(m: Any, h: Tensor) -> Tensor:
    new = torch.zeros(8, dtype=torch.float64)
    torch.add(new, h.mean(0), out=new)
    return h + new


def reads_a_new_tensor(m: Any, h: Tensor) -> Tensor:
    return h + torch.linspace(0, 1, 8, dtype=torch.float64)


NEW = {  # whether torch.fx's trace of it is right
    sums_into_a_new_tensor: True,
    adds_to_a_new_tensor: True,
    sets_a_row_of_a_new_tensor: False,
    writes_through_a_view_of_a_new_tensor: False,
    gives_a_new_tensor_as_out: True,
    reads_a_new_tensor: True,
}


class Meter:
    """An object that counts."""

    n = 0


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
        counts_and_adds,
        turns_every_other_time,
        keeps_a_list,
        keeps_a_table,
        keeps_a_number_in_a_layer,
        keeps_a_number_in_an_object,
        makes_a_tensor_of_a_count,
    ],
)
def test_what_a_graph_cannot_hold_is_merged_with_a_warning(forward):
    model = made(forward)
    with pytest.warns(UserWarning, match="merged, not fused"):
        fused = splitgrow.fuse(model)
    assert not isinstance(fused, fx.GraphModule)
    assert_equal(calls(fused), calls(splitgrow.merge(model).eval()))


@pytest.mark.parametrize("forward", [writes_into_a_buffer, counts, keeps_a_list_that_nothing_reads])
def test_control_what_a_graph_can_hold_is_fused(forward):
    model = made(forward)
    fused = splitgrow.fuse(model)
    assert isinstance(fused, fx.GraphModule)
    assert_equal(calls(fused), calls(splitgrow.merge(model).eval()))


@pytest.mark.filterwarnings("ignore:the model is merged, not fused")
@pytest.mark.parametrize("forward", NEW)
def test_a_tensor_that_forward_makes_anew_is_new_at_each_call(forward):
    model = splitgrow.growable(Keeps(forward).double().eval(), X)
    model.expand_layer("b", 2)
    fused = splitgrow.fuse(model)
    assert_equal(calls(fused), calls(splitgrow.merge(model).eval()))
    assert isinstance(fused, fx.GraphModule) == NEW[forward]
    if NEW[forward]:
        copies = [node for node in fused.graph.nodes if node.target == "clone"]
        assert len(copies) == (forward is not reads_a_new_tensor)


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
