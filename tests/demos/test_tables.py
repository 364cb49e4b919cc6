from __future__ import annotations

import io

import torch
from rich.console import Console
from torch import nn

import splitgrow
from splitgrow.demos import pages, tables
from splitgrow.demos.results import Growth, Result
from splitgrow.growth.edits import Edit


def _history() -> list[Edit]:
    """A growth by width, an insertion, and a consolidation."""
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    handle = splitgrow.handle(splitgrow.growable(net, torch.ones(1, 1, 8, 8)))
    for _ in range(4):
        handle.expand_layer("0", 1)
    handle.insert_layer("0", "gate")
    handle.consolidate()
    return list(handle.edits)


def test_every_kind_of_edit_is_a_row_that_can_be_read() -> None:
    wider, *_, gate, joined = _history()
    assert tables.edit_rows(wider)[0] == ("0", "Conv2d", "4 -> 5", "1", "10")
    ((name, kind, units, inputs, added),) = tables.edit_rows(gate)
    assert (name, kind) == (gate.inserted[0].name, "gate: Conv2d")
    assert (units, inputs, added) == ("8", "", f"{gate.parameters:,}")
    assert tables.edit_rows(joined) == [
        ("0", "joins 4 edits from 1 to 4", "", "", "0"),
        ("2", "joins 4 edits from 1 to 4", "", "", "0"),
    ]


def test_every_kind_of_edit_has_its_few_words() -> None:
    wider, *_, gate, joined = _history()
    assert tables.what(wider) == "1 unit more in 0"
    assert tables.what(gate).startswith("gate ")
    assert tables.what(joined) == "blocks of 2 layers joined"


def test_tables_and_pages_show_every_kind_of_edit() -> None:
    growths = [Growth(at, edit, 0.0) for at, edit in enumerate(_history())]
    console = Console(file=io.StringIO(), width=160)
    console.print(tables.edits(growths))
    assert isinstance(console.file, io.StringIO)
    for shown in (console.file.getvalue(), pages.edits(growths)):
        assert "gate: Conv2d" in shown
        assert "joins 4 edits from 1 to 4" in shown


def test_an_edit_that_makes_layers_plain_is_shown() -> None:
    edit = Edit(3, 1, None, {}, {}, (), absorbed=("stem", "head"))
    assert tables.what(edit) == "2 layers made plain"
    assert tables.edit_rows(edit)[1] == ("head", "made plain", "", "", "0")


def test_edits_that_take_units_and_layers_out_are_shown() -> None:
    net = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    handle = splitgrow.handle(splitgrow.growable(net, torch.ones(1, 2)))
    fewer = handle.shrink({"0": [0, 1]})
    name = handle.insert_layer("0", "residual").inserted[0].name
    gone = handle.remove_layer(name)
    assert tables.what(fewer) == "2 units fewer in 0"
    assert tables.edit_rows(fewer)[0] == ("0", "Linear", "4 -> 2", "2", "-6")
    assert tables.what(gone) == f"{name} taken out"
    assert tables.edit_rows(gone) == [(name, "taken out: Linear + ReLU + Linear", "", "", "-12")]


def test_what_arithmetic_explains_is_told_apart_from_overhead(result: Result) -> None:
    told = tables.speed(result.measurements)
    assert "fused network has 4.00 times the multiply-adds of the one before growth" in told
    assert "takes 0.60 times as long" in told
    assert "in blocks, takes 4.67 times as long as the fused one" in told
