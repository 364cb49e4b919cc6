"""Stretches of positions against plain sets."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given
from hypothesis import strategies as st

from splitgrow.utils.spans import Spans, length_of, regions, repeated, shared, take, union

LENGTH = 12


def spans_of(positions: set[int]) -> Spans:
    return union([((position, 1),) for position in positions])


def positions_of(spans: Spans) -> list[int]:
    return [p for start, length in spans for p in range(start, start + length)]


positions = st.sets(st.integers(0, LENGTH - 1))


@given(positions)
def test_a_union_of_single_positions_is_the_stretches_in_order(chosen: set[int]) -> None:
    spans = spans_of(chosen)
    assert positions_of(spans) == sorted(chosen)
    assert length_of(spans) == len(chosen)
    assert all(sum(one) < other[0] for one, other in pairwise(spans))


@given(positions, positions)
def test_shared_stretches_tell_the_places_in_both(one: set[int], other: set[int]) -> None:
    own, theirs = sorted(one), sorted(other)
    found = []
    for place, there, length in shared(spans_of(one), spans_of(other)):
        for step in range(length):
            assert own[place + step] == theirs[there + step]
            found.append(own[place + step])
    assert sorted(found) == sorted(one & other)


@given(positions, st.integers(1, 3))
def test_repeated_stretches_lie_in_every_section(chosen: set[int], times: int) -> None:
    expected = [p + LENGTH * k for k in range(times) for p in sorted(chosen)]
    assert positions_of(repeated(spans_of(chosen), times, LENGTH)) == expected


@given(positions.filter(bool))
def test_taking_positions_is_indexing(chosen: set[int]) -> None:
    tensor = torch.arange(3 * LENGTH).reshape(3, LENGTH)
    assert torch.equal(take(tensor, 1, spans_of(chosen)), tensor[:, sorted(chosen)])


@given(positions.filter(bool), positions.filter(bool))
def test_regions_put_a_tensor_where_it_lies(rows: set[int], columns: set[int]) -> None:
    part = 1 + torch.arange(len(rows) * len(columns) * 2).reshape(len(rows), len(columns), 2)
    whole = torch.zeros(LENGTH, LENGTH, 2, dtype=part.dtype)
    for there, own in regions({0: spans_of(rows), 1: spans_of(columns)}, 3):
        whole[there] = part[own]
    expected = torch.zeros_like(whole)
    expected[torch.tensor(sorted(rows))[:, None], torch.tensor(sorted(columns))] = part
    assert torch.equal(whole, expected)
