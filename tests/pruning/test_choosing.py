"""Which units go: the weakest, in whole steps, of the layers that may lose some."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from cases import CASES
from helpers import randomise
from scoring import made_growable
from torch import Tensor, nn

import splitgrow
from splitgrow.errors import FixedWidthError
from splitgrow.growth.history_lookup import history_of
from splitgrow.pruning.choosing import (
    PruneCandidates,
    as_request,
    multiple_of,
    prunable_groups,
    weakest_units,
)
from splitgrow.pruning.shrinking.chosen_units import requested_units


def candidates(
    *widths: int, keep: float = 0.0, steps: int = 1, multiple: int = 1, first: Any = None
) -> PruneCandidates:
    groups = range(len(widths))
    return PruneCandidates(
        dict(zip(groups, widths, strict=True)),
        dict(zip(groups, first or widths, strict=True)),
        dict.fromkeys(groups, steps),
        dict.fromkeys(groups, multiple),
        keep,
    )


def scores(*widths: int, seed: int = 0) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.rand(width, generator=generator) for n, width in enumerate(widths)}


def test_globally_the_weakest_of_all_go_and_by_layer_the_weakest_of_each() -> None:
    found, all_scores = candidates(10, 6), scores(10, 6)
    chosen = weakest_units(found, all_scores, 0.5, "global", comparable=True)
    flat = sorted(
        (float(s), group, nth) for group, own in all_scores.items() for nth, s in enumerate(own)
    )
    expected = {(group, nth) for _, group, nth in flat[:8]}
    assert {(group, nth) for group, own in chosen.items() for nth in own} == expected
    chosen = weakest_units(found, all_scores, 0.5, "layer", comparable=True)
    assert chosen == {
        n: sorted(own.argsort()[: len(own) // 2].tolist()) for n, own in all_scores.items()
    }


def test_scores_on_scales_of_their_own_are_compared_relative_to_their_mean() -> None:
    found, given = (
        candidates(4, 4),
        {0: torch.tensor([1.0, 2, 3, 6]), 1: torch.tensor([10.0, 50, 60, 80])},
    )
    assert weakest_units(found, given, 0.25, "global", comparable=True) == {0: [0, 1]}
    assert weakest_units(found, given, 0.25, "global", comparable=False) == {0: [0], 1: [0]}
    below = {0: given[0] - 10, 1: given[1] - 10}  # the order in a group stays, whatever the sign
    chosen = weakest_units(found, below, 0.25, "global", comparable=False)
    assert all(own == [*range(len(own))] for own in chosen.values())


def test_equal_scores_go_in_order_and_groups_without_scores_stay() -> None:
    given = {1: torch.ones(6)}
    assert weakest_units(candidates(6, 6), given, 0.5, "global", comparable=False) == {1: [0, 1, 2]}
    assert weakest_units(candidates(6, 6), given, 0.5, "layer", comparable=False) == {1: [0, 1, 2]}


def test_shares_are_of_the_first_units_and_some_of_these_stay() -> None:
    now = candidates(8, 4, first=(10, 4))
    chosen = weakest_units(now, scores(8, 4), 0.5, "global", comparable=True)
    assert sum(map(len, chosen.values())) == 7 - 2
    chosen = weakest_units(now, scores(8, 4), 0.1, "global", comparable=True)
    assert chosen == {}, "more are gone already"
    kept = candidates(8, 4, first=(10, 4), keep=0.7)
    chosen = weakest_units(kept, scores(8, 4), 1.0, "layer", comparable=True)
    assert {n: len(own) for n, own in chosen.items()} == {0: 8 - 7, 1: 4 - 3}
    assert candidates(70, keep=0.1).may_go(0) == 63, "0.1 * 70 is 7 and some rounding"
    assert candidates(5).may_go(0) == 4, "one unit stays in any case"


def test_counts_are_the_largest_that_kernels_and_multiples_allow() -> None:
    draw = random.Random(0)
    for _ in range(200):
        width, step, multiple = (
            draw.randrange(1, 40),
            draw.choice([1, 2, 4]),
            draw.choice([1, 3, 8]),
        )
        found = candidates(width, steps=step, multiple=multiple, keep=draw.choice([0, 0.3]))
        count = draw.randrange(width + 3)
        allowed = [
            n
            for n in range(min(count, found.may_go(0)) + 1)
            if n % step == 0 and ((width - n) % multiple == 0 or n == 0)
        ]
        assert found.whole(0, count) == max(allowed)


class Net(nn.Module):
    """A flattened convolution, tied layers, and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one = nn.Conv2d(2, 6, 3), nn.Linear(6 * 4, 5)
        self.two, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(self.conv(x).relu().flatten(1))
        return self.head(x + self.two(x))


def net() -> Any:
    torch.manual_seed(0)
    return splitgrow.growable(randomise(Net()).double(), torch.randn(2, 2, 4, 4).double())


def makers(graph: Any, **options: Any) -> list[list[str]]:
    found = prunable_groups(graph, options.get("layers"), options.get("ignore", ()))
    return sorted(sorted(graph.makers(group)) for group in found)


def test_all_layers_but_the_outputs_may_lose_units() -> None:
    graph = history_of(net()).graph
    assert makers(graph) == [["conv"], ["one", "two"]]
    assert makers(graph, ignore=["two"]) == [["conv"]]
    assert makers(graph, layers=["two"]) == [["one", "two"]]
    assert makers(graph, layers=["head", 0]) == [["conv"], ["head"]]


def test_layers_that_cannot_lose_units_are_refused() -> None:
    graph = history_of(net()).graph
    with pytest.raises(FixedWidthError, match="no layer may lose units"):
        makers(graph, ignore=["conv", "one"])
    with pytest.raises(ValueError, match="layers is empty"):
        makers(graph, layers=[])
    with pytest.raises(ValueError, match="did you mean 'conv'"):
        makers(graph, layers=["con"])
    with pytest.raises(ValueError, match="did you mean 'conv'"):
        makers(graph, ignore=["con"])
    fixed = next(case for case in CASES if case.name == "mlp")
    with pytest.raises(FixedWidthError, match="`fc3` cannot shrink"):
        makers(history_of(made_growable(fixed)).graph, layers=["fc3"])


def test_multiples_are_of_channels_in_all_layers() -> None:
    graph = history_of(net()).graph
    (group,) = prunable_groups(graph, ["conv"], ())
    assert [multiple_of(graph, group, n) for n in (1, 2, 3, 8)] == [1, 2, 3, 8]
    model = made_growable(next(case for case in CASES if case.name == "vision transformer"))
    graph = history_of(model).graph
    for group in prunable_groups(graph, None, ()):
        units = multiple_of(graph, group, 8)
        for node in graph.sized():
            assert graph.multiplicity(node.outs, group) * units % 8 == 0
        halves = units // 2 if units % 2 == 0 else units  # control: no smaller number does
        if halves < units:
            assert any(graph.multiplicity(n.outs, group) * halves % 8 for n in graph.sized())


@pytest.mark.parametrize("name", ["dense", "shuffled", "fused heads", "tagger", "tokens"])
def test_a_request_names_just_the_units(name: str) -> None:
    model = made_growable(next(case for case in CASES if case.name == name))
    graph, draw = history_of(model).graph, random.Random(0)
    units = {
        group: sorted(draw.sample(range(width), draw.randrange(1, width)))
        for group, width in prunable_groups(graph, None, ()).items()
        if width > 1
    }
    request = as_request(graph, units)
    assert requested_units(graph, history_of(model).modules, request) == units
    assert sum(len({*c}) for c in request.values()) >= math.fsum(map(len, units.values()))


class _Cached(nn.Module):
    """Attention that returns its keys beside its answer."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(8, 16) for _ in range(3))
        self.join, self.head = nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = (
            layer(x).view(*x.shape[:2], -1, 4).transpose(1, 2)
            for layer in (self.queries, self.keys, self.values)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(self.join(mixed.transpose(1, 2).flatten(2))), k


def test_heads_go_although_the_model_returns_a_cache_of_keys() -> None:
    model = splitgrow.growable(_Cached().double(), torch.randn(2, 3, 8, dtype=torch.float64))
    model.prune(0.5, scope="layer")
    widths = {layer.name: layer.width for layer in model.layers}
    assert widths == {"queries": 8, "keys": 8, "values": 8, "join": 4, "head": 2}
