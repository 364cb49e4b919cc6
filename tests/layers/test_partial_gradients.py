"""The rectangles of a gradient that are computed, against plain sets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from splitgrow.layers.partial_gradients import Side, diagonal_gradients_of, gradients_of
from splitgrow.utils.spans import Spans, length_of, union


def spans_of(positions: set[int]) -> Spans:
    return union([((position, 1),) for position in positions])


def positions_of(spans: Spans) -> list[int]:
    return [p for start, length in spans for p in range(start, start + length)]


# A history of growths: for each edit, which positions of the two axes were born in it.
births = st.lists(st.integers(0, 3), min_size=4, max_size=8).map(lambda found: [0, *found])


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[int], list[int], set[tuple[str, int]]]:
    """Births of outputs and of inputs, and the blocks that train."""
    outs, ins = draw(births), draw(births)
    blocks = [("new", edit) for edit in sorted({0, *outs})]
    blocks += [("helper", edit) for edit in sorted({*ins} - {0})]
    return outs, ins, draw(st.sets(st.sampled_from(blocks), min_size=1))


def block_places(block: tuple[str, int], outs: list[int], ins: list[int]) -> dict[int, Spans]:
    kind, edit = block
    if kind == "new":
        rows = {p for p, birth in enumerate(outs) if birth == edit}
        columns = {p for p, birth in enumerate(ins) if birth <= edit}
    else:
        rows = {p for p, birth in enumerate(outs) if birth < edit}
        columns = {p for p, birth in enumerate(ins) if birth == edit}
    return {0: spans_of(rows), 1: spans_of(columns)}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("sections", [1, 2])
@given(history=histories())
def test_every_block_that_trains_gets_its_own_gradient(history, sections, swapped) -> None:
    """The oracle is the gradient of the whole weight, indexed."""
    outs, ins, training = history
    shape = (len(outs), len(ins))
    whole = torch.arange(1, 1 + shape[0] * shape[1], dtype=torch.float64).reshape(shape)
    named = dict(enumerate(sorted(training)))
    places = {index: block_places(block, outs, ins) for index, block in named.items()}
    rows = {i: p for i, p in places.items() if named[i][0] == "new"}
    columns = {i: p for i, p in places.items() if named[i][0] == "helper"}
    found = gradients_of(Side(0, 1, shape[0]), Side(1, sections, shape[1]), rows, columns)
    if swapped:  # the weight of a transposed convolution: inputs first
        flip = {0: 1, 1: 0}
        flipped = [
            {i: {flip[d]: s for d, s in p.items()} for i, p in part.items()}
            for part in (rows, columns)
        ]
        mirrored = gradients_of(Side(1, 1, shape[0]), Side(0, sections, shape[1]), *flipped)
        assert mirrored.worth == found.worth
        assert [s.outs for s in mirrored.strips] == [s.outs for s in found.strips]
    assert len(found.strips) <= 2
    strips = []
    for strip in found.strips:
        # With sections, a strip's inputs are the same in each; the weight has one of them.
        own = [p for p in positions_of(strip.ins) if p < shape[1]]
        assert positions_of(strip.ins) == [p + shape[1] * k for k in range(sections) for p in own]
        strips.append(whole[positions_of(strip.outs)][:, own])
        assert dict(strip.lengths) == {0: strips[-1].shape[0], 1: strips[-1].shape[1]}
    assert sum(strip.numel() for strip in strips) == pytest.approx(found.worth * whole.numel())
    for index, place in places.items():
        chosen = whole[positions_of(place[0])][:, positions_of(place[1])]
        gradient = torch.zeros_like(chosen)
        share = found.shares[index]
        for there, here in share.rectangles:
            assert not gradient[here].any()  # nothing comes twice
            gradient[here] = strips[share.strip][there]
        assert torch.equal(gradient, chosen)


@given(births, st.data())
def test_a_diagonal_layers_gradient_is_one_strip(found, data) -> None:
    training = data.draw(st.sets(st.sampled_from(sorted(set(found))), min_size=1))
    places = {
        edit: {0: spans_of({p for p, birth in enumerate(found) if birth == edit})}
        for edit in training
    }
    chosen = spans_of({p for p, birth in enumerate(found) if birth in training})
    gradients = diagonal_gradients_of(0, len(found), places, (chosen, chosen))
    whole = torch.arange(1.0, 1 + len(found))
    (strip,) = gradients.strips
    part = whole[positions_of(strip.outs)]
    for edit, place in places.items():
        gradient = torch.zeros(length_of(place[0]))
        for there, here in gradients.shares[edit].rectangles:
            gradient[here] = part[there]
        assert torch.equal(gradient, whole[positions_of(place[0])])


def test_what_is_frozen_is_not_computed_and_above_four_fifths_all_is() -> None:
    out, into = Side(0, 1, 72), Side(1, 1, 72)
    rows, columns = {1: {0: ((64, 8),), 1: ((0, 72),)}}, {2: {0: ((0, 64),), 1: ((64, 8),)}}
    some = gradients_of(out, into, rows, columns)
    assert some.worth == pytest.approx((8 * 72 + 72 * 8) / 72**2)
    most = gradients_of(out, into, {1: {0: ((4, 68),), 1: ((0, 72),)}}, {})
    assert most.worth == 1
    assert len(most.strips) == 1
