"""The layers that may grow: one for each group, the outputs left alone."""

from __future__ import annotations

import pytest
import torch
from cases import CASES
from grown_policies import convolutional, widths
from torch import Tensor, nn

import splitgrow
from splitgrow import All, Factor, FixedWidthError, ToWidths
from splitgrow.analysis.channels.channel_axes import groups_of
from splitgrow.grower.candidates import Selection, find_candidates
from splitgrow.growth.history_lookup import history_of

FREE = [case for case in CASES if case.name != "mlp"]  # its only output cannot grow at all


@pytest.mark.parametrize("case", FREE, ids=lambda case: case.name)
def test_outputs_keep_their_shapes_and_all_other_groups_grow_once(case) -> None:
    model = splitgrow.growable(case.model(), case.inputs())
    graph = history_of(model).graph
    shapes = graph.output_shapes({})
    growing = {g for node in graph.sized() for g in graph.growing_groups(node.outs)}
    edit = splitgrow.handle(model).expand(Factor(2.0).request(model))
    assert history_of(model).graph.output_shapes({}) == shapes
    assert {*edit.growth} == growing - graph.output_groups()
    assert all(units == graph.groups.width(group) for group, units in edit.growth.items())


def test_control_without_the_outputs_left_alone_a_shape_changes() -> None:
    model = convolutional()
    shapes = history_of(model).graph.output_shapes({})
    model.expand(Factor(2.0).request(model, where=All(only=["*", "8"])))
    assert history_of(model).graph.output_shapes({}) != shapes


def test_to_widen_everything_but_the_head_is_one_line() -> None:
    model = convolutional()
    model.expand(splitgrow.Factor(1.25).request(model))
    # 12 to 15, 8 to 10; 10 to 12.5, of which the larger neighbour counts
    assert widths(model) == {"0": 10, "3": 15, "6": 13, "8": 4}


class Stream(nn.Module):
    """A residual stream with two writers, whose last state is returned beside the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Linear(3, 6), nn.Linear(6, 9)
        self.down, self.head = nn.Linear(9, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        x = x + self.down(self.up(x).relu())
        return self.head(x), x


def test_a_stream_that_the_model_returns_is_left_alone_unless_one_of_its_layers_is_named() -> None:
    model = splitgrow.growable(Stream().double(), torch.randn(2, 3, dtype=torch.float64))
    assert Factor(2.0).request(model) == {"up": 9}
    assert Factor(2.0).request(model, where=All(only=["*", "down"])) == {"stem": 6, "up": 9}
    assert ToWidths({"head": 5}).request(model) == {"head": 3}


class Heads(nn.Module):
    """Attention that returns its keys by heads, as a cache holds them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.queries, self.keys, self.values = (nn.Linear(8, 8) for _ in range(3))
        self.join, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embed(x)
        q, k, v = (
            layer(x).view(*x.shape[:2], -1, 4).transpose(1, 2)
            for layer in (self.queries, self.keys, self.values)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.join(mixed.transpose(1, 2).flatten(2))
        return self.head(x), k


def test_heads_grow_although_the_model_returns_a_cache_of_keys() -> None:
    model = splitgrow.growable(Heads().double(), torch.randn(2, 3, 5, dtype=torch.float64))
    graph = history_of(model).graph
    cached = {g for axis in graph.outputs[1] for g in groups_of(graph.groups.resolve(axis))}
    assert cached - graph.output_groups()
    assert Factor(2.0).request(model) == {"embed": 8, "queries": 8}


def test_a_layer_that_is_named_and_cannot_grow_is_refused_with_the_reason() -> None:
    model = splitgrow.growable(
        nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (2, 2))).double(),
        torch.randn(2, 3, dtype=torch.float64),
    )
    with pytest.raises(FixedWidthError, match="`0` cannot grow"):
        Factor(2.0).request(model, where=All(only="0"))
    with pytest.raises(FixedWidthError, match="no layer may grow"):
        Factor(2.0).request(model)


def test_a_tied_layer_that_is_to_stay_keeps_its_group() -> None:
    model = splitgrow.growable(Stream().double(), torch.randn(2, 3, dtype=torch.float64))
    graph = history_of(model).graph
    kept = Selection(named=frozenset({"down"}), kept=frozenset({"stem"}))
    with pytest.raises(ValueError, match="tied"):
        find_candidates(graph, kept)
    found = find_candidates(graph, Selection(kept=frozenset({"stem"})))
    assert "stem" in found.left["down"]
    assert [*found.groups] == ["up"]
