"""Tables for a width: what fits stays whole, and what does not is shortened in a fixed order."""

from __future__ import annotations

import itertools

import pytest

from splitgrow.utils.narrow_tables import TableColumn, laid_out, shortened_name

COLUMNS = (
    TableColumn("#", "number"),
    TableColumn("layer", "name"),
    TableColumn("type", "name"),
    TableColumn("parameters added", "number"),
    TableColumn("grows with", "names", drop=2),
    TableColumn("the reason why", "text", drop=1),
)
NAMES = [
    f"hidden_layers_of_the_encoder.{at}.{kind}"
    for at in range(12)
    for kind in ("attention_projection_in", "feed_forward_expansion", "feed_forward_contraction")
]
ROWS = [
    (str(at), name, "Linear", f"{at * 12345:,}", ", ".join(NAMES[:at]), "it is tied to the input")
    for at, name in enumerate(NAMES)
]


def lines(width: int | None) -> list[str]:
    table = laid_out(COLUMNS, ROWS, width)
    return [*table.head, *(line for row in table.rows for line in row)]


@pytest.mark.parametrize("width", [50, 60, 72, 80, 100, 140, 300])
def test_no_line_is_longer_than_the_width(width: int) -> None:
    assert max(map(len, lines(width))) <= width


def test_without_a_width_nothing_is_shortened() -> None:
    whole = "\n".join(lines(None))
    assert all(name in whole for name in NAMES)
    assert ", ".join(NAMES[:-1]) in whole
    assert laid_out(COLUMNS, ROWS, None).left_out == ()


@pytest.mark.parametrize("width", [50, 60, 80, 100])
def test_heads_keep_their_words_and_numbers_stay_whole(width: int) -> None:
    table = laid_out(COLUMNS, ROWS, width)
    head = " ".join(table.head)
    for column in COLUMNS:
        shown = column.head not in table.left_out
        assert all((word in head.split()) == shown for word in column.head.split())
    for (number, *_), row in zip(ROWS, table.rows, strict=True):
        assert row[0].split()[0] == number
        assert f"{int(number) * 12345:,}" in row[0].split()


@pytest.mark.parametrize("width", [50, 60, 80, 100])
def test_a_name_takes_one_line_and_names_that_differ_stay_different(width: int) -> None:
    columns = (*COLUMNS[:4],)
    table = laid_out(columns, [row[:4] for row in ROWS], width)
    assert all(len(row) == 1 for row in table.rows)
    assert len({row[0].split()[1] for row in table.rows}) == len(NAMES)


def test_columns_stay_away_in_their_order() -> None:
    gone = [set(laid_out(COLUMNS, ROWS, width).left_out) for width in (400, 95, 80, 50)]
    assert all(less <= more for less, more in itertools.pairwise(gone))
    assert gone[0] == set()
    assert gone[-1] == {"grows with", "the reason why"}


def test_parts_of_a_name_become_letters_before_it_is_cut() -> None:
    name = "transformer.h.11.attn.c_attn"
    assert shortened_name(name, 28) == name
    assert shortened_name(name, 18) == "t.h.11.attn.c_attn"
    assert shortened_name(name, 15) == "t.h.11.a.c_attn"
    assert len(shortened_name(name, 10)) <= 10


def test_the_rest_of_a_list_is_counted() -> None:
    columns = (TableColumn("read by", "names"),)
    (row,) = laid_out(columns, [(", ".join(["stem", *NAMES]),)], 40).rows
    assert row == ("  stem and 36 more",)
