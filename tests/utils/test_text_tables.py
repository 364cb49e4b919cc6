"""Records that are shown as tables: whole in print, short on a screen, drawn in notebooks."""

from functools import cache
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import splitgrow
from splitgrow import pruning, scores
from splitgrow.pruning.dead_units.without_dead_units import without_dead_units
from splitgrow.utils.text_tables import ROWS_ON_SCREEN, Rows, Tabular

MANY = ROWS_ON_SCREEN + 3


class Numbers(Tabular):
    """As many rows and notes as asked for."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def _head(self) -> str:
        return f"{self.rows} <numbers>"

    def _rows(self) -> Rows:
        return [("number", "units"), *((f"<{i}>", f"{i}") for i in range(self.rows))]

    def _notes(self) -> list[str]:
        return [f"note {i}" for i in range(self.rows)]

    def _bars(self) -> dict[int, list[tuple[int, int]]]:
        return {1: [(i, 2 * i) for i in range(self.rows)]}


@cache
def records() -> dict[str, Tabular]:
    """A record of each kind, of a model with more layers than a screen has lines."""
    layers = [nn.Linear(4, 4) if i % 2 == 0 else nn.ReLU() for i in range(2 * MANY)]
    net = splitgrow.growable(nn.Sequential(*layers, nn.Linear(4, 2)), torch.ones(2, 4))
    edit = net.expand(dict.fromkeys([layer.name for layer in net.layers.where(output=False)], 1))

    def loss(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch).square().mean()

    ranking = scores.rank(net, loss, [torch.ones(2, 4)], score="gradient")
    shrunk = net.shrink(
        dict.fromkeys([layer.name for layer in net.layers.where(output=False)], 1), give_up=True
    )
    return {
        "Layers": net.layers,
        "Edit": edit,
        "Summary": net.summary(),
        "Ranking": ranking,
        "PruningReport": pruning.report(shrunk),
        "Narrowing": without_dead_units(splitgrow.merge(net), torch.ones(2, 4))[1],
    }


class Cells(HTMLParser):
    """Reads the texts of a table, and whether each tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1] in ("td", "th"):
            self.rows[-1].append(data)


def test_every_kind_of_record_is_tried_here():
    kinds = {kind.__name__ for kind in Tabular.__subclasses__()} - {"Numbers"}
    assert kinds == records().keys()


def test_a_console_shows_a_screen_and_print_everything():
    for kind, record in {**records(), "Numbers": Numbers(MANY)}.items():
        whole, screen = str(record).splitlines(), repr(record).splitlines()
        if len(record._rows()) > ROWS_ON_SCREEN + 1:
            assert "print() shows all" in repr(record), kind
        assert len(screen) <= 3 * ROWS_ON_SCREEN, kind
        assert screen[0] == whole[0], kind
    assert "<22>" in str(Numbers(MANY))
    assert "<22>" not in repr(Numbers(MANY))


def test_a_notebook_shows_every_row_and_takes_text_for_text():
    for kind, record in records().items():
        rows = Cells(record._repr_html_()).rows
        assert len(rows) == len(record._rows()), kind
    assert Cells(Numbers(3)._repr_html_()).rows[1:] == [["<0>", "0"], ["<1>", "1"], ["<2>", "2"]]


def test_a_bar_shows_the_change_beside_the_largest():
    drawn = Numbers(3)._repr_html_()
    assert "width:50.0%;background:#f58518" in drawn  # from 2 to 4, of 4
    assert "width:25.0%;background:#4c78a8" in drawn  # 1 of 4


def test_no_table_is_only_its_head():
    class Nothing(Numbers):
        def _rows(self) -> Rows:
            return ()

    assert str(Nothing(0)) == "0 <numbers>"
    assert "<table>" not in Nothing(0)._repr_html_()
    with pytest.raises(NotImplementedError):
        str(Tabular())
