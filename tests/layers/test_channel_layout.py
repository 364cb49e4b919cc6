"""Layouts find the channels of every birth again, after any number of growths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import splitgrow
from splitgrow.layers.channel_layout import Layout, Piece, Segment


@st.composite
def grown_axes(draw: Any) -> tuple[Layout, list[list[int]]]:
    """A layout after some edits, and after each edit the birth of every position, kept by hand."""
    length = draw(st.integers(1, 6))
    layout, births = Layout.original(length), [0] * length
    history = [list(births)]
    for birth in range(1, draw(st.integers(1, 4)) + 1):
        places = draw(st.sets(st.integers(0, len(births)), max_size=3))
        insertions = [(place, draw(st.integers(1, 3))) for place in sorted(places)]
        layout = layout.inserted(insertions, birth)
        for place, count in insertions[::-1]:
            births[place:place] = [birth] * count
        history.append(list(births))
    return layout, history


def written_out(layout: Layout) -> list[int]:
    return [s.birth for s in layout.segments for _ in range(s.length)]


@given(grown_axes())
def test_inserting_puts_new_positions_where_they_were_asked_for(axis: Any) -> None:
    layout, history = axis
    assert written_out(layout) == history[-1]
    assert layout.length == len(history[-1])


@given(grown_axes())
def test_every_earlier_axis_comes_back_when_later_births_are_left_out(axis: Any) -> None:
    layout, history = axis
    for birth, births in enumerate(history):
        assert written_out(layout.until(birth)) == births


@given(grown_axes(), st.sets(st.integers(0, 4)))
def test_spans_cover_just_the_chosen_births(axis: Any, chosen: set[int]) -> None:
    layout, history = axis
    spans = layout.spans(chosen.__contains__)
    covered = [p for start, length in spans for p in range(start, start + length)]
    assert covered == [p for p, birth in enumerate(history[-1]) if birth in chosen]


@given(grown_axes())
def test_pieces_put_the_axis_together_from_old_and_new(axis: Any) -> None:
    layout, history = axis
    for birth, births in enumerate(history[1:], 1):
        before = history[birth - 1]
        parts = {False: before, True: [birth] * (len(births) - len(before))}
        joined = [
            b
            for piece in layout.pieces(birth)
            for b in parts[piece.new][piece.start : piece.start + piece.length]
        ]
        assert joined == births


@st.composite
def axes_grown_behind(draw: Any) -> Layout:
    """A layout that has grown at its end only, as most do; some edits add nothing to it."""
    layout = Layout.original(draw(st.integers(0, 3)))
    for birth in range(1, 6):
        count = draw(st.integers(0, 2))
        layout = layout.inserted([(layout.length, count)] if count else [], birth)
    return layout


@given(grown_axes().map(lambda axis: axis[0]) | axes_grown_behind(), st.integers(0, 7))
def test_births_are_found_at_once_as_by_reading_every_segment(layout: Layout, birth: int) -> None:
    pieces = layout.pieces(birth)
    assert layout.born_in(birth) == layout.spans(lambda other: other == birth)
    assert layout.born_until(birth) == layout.spans(lambda other: other <= birth)
    assert layout.turns(birth) == pieces
    assert layout.is_behind(birth) == ([piece.new for piece in pieces] == [False, True])
    births = [segment.birth for segment in layout.segments]
    assert layout.all_behind(births[1:]) == all(map(layout.is_behind, births[1:]))
    assert not layout.all_behind([9])


def test_equal_sections_share_one_layout() -> None:
    layout = Layout.original(4).inserted([(2, 1), (4, 1)], 1)
    assert layout.section(2) == Layout((Segment(0, 2), Segment(1, 1)))
    assert layout.section(1) is layout
    assert layout.pieces(1)[1] == Piece(new=True, start=0, length=1)


@pytest.mark.parametrize("insertions", [[(1, 1), (4, 1)], [(4, 2)]])
def test_sections_that_differ_are_refused(insertions: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="differ"):
        Layout.original(4).inserted(insertions, 1).section(2)


@pytest.mark.parametrize(
    "segments", [(Segment(0, 0),), (Segment(-1, 2),), (Segment(0, 1), Segment(0, 1))]
)
def test_malformed_layouts_are_refused(segments: tuple[Segment, ...]) -> None:
    with pytest.raises(ValueError, match="segments"):
        Layout(segments)


def test_an_odd_length_makes_no_sections() -> None:
    with pytest.raises(ValueError, match="equal sections"):
        Layout.original(5).section(2)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # of torch's compiler
def test_compiled_code_follows_a_layout_whose_numbers_it_took_for_symbols() -> None:
    x = torch.randn(3, 2)
    model: Any = splitgrow.growable(nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3)), x).eval()
    compiled = torch.compile(model, backend="eager")
    for n in (2, 1):
        model.expand_layer("0", n)
        with model.at(0):  # the layers are prepared anew, by compiled code
            model(x)
        compiled(x)
    model.expand_input(1)
    with model.at(0):
        model(x)
    wider = torch.randn(3, 3)
    torch.testing.assert_close(compiled(wider), model(wider))
    torch._dynamo.reset()
