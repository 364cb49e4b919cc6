"""A report says how wide layers were and are, from the edits alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import splitgrow
from splitgrow.growth.edits import Edit
from splitgrow.pruning import PruningReport, WidthChange, report


def net() -> Any:
    layers = [nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 2)]
    return splitgrow.growable(nn.Sequential(*layers), torch.ones(2, 3))


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def pruned() -> tuple[Any, list[Edit]]:
    model, edits = net(), list[Edit]()
    model.prune(0.5, scope="layer", steps=3, recover=edits.append)
    return model, edits


def test_it_has_the_widths_before_the_first_and_after_the_last_edit() -> None:
    model, edits = pruned()
    found = report(edits)
    assert found.rows == (WidthChange("0", "Linear", 12, 6), WidthChange("2", "Linear", 6, 3))
    assert found.parameters == parameters(net()) - parameters(model)
    assert found.macs == (3 * 12 + 12 * 6 + 6 * 2, 3 * 6 + 6 * 3 + 3 * 2)
    assert (len(found.moved), found.criteria) == (3, ("group",))
    assert report(edits[-1]).rows[0] == WidthChange("0", "Linear", 8, 6)  # control


def test_rows_are_in_order_of_execution_whatever_went_first() -> None:
    model = net()
    edits = [model.shrink_layer("2", 1), model.shrink_layer("0", 1)]
    assert [row.layer for row in report(edits).rows] == ["0", "2"]


def test_growth_counts_and_a_width_that_is_as_before_is_left_out() -> None:
    model, edits = pruned()
    edits.append(model.expand_layer("0", 6))
    found = report(splitgrow.handle(model).edits)
    assert found.rows == (WidthChange("2", "Linear", 6, 3),)
    assert found.macs is None
    assert len(found.moved) == 3
    only = report(edits[-1])
    assert only.rows == (WidthChange("0", "Linear", 6, 12),)
    assert str(only).startswith("0 parameters went in 0 steps\n")


def test_it_prints_as_a_table() -> None:
    _, edits = pruned()
    lines = str(report(edits)).splitlines()
    assert lines[0] == f"{report(edits).parameters} parameters went in 3 steps"
    assert lines[1] == "multiply-adds for one sample: 120 -> 42 (35.0%)"
    assert [line.split() for line in lines[2:]] == [
        ["layer", "type", "units", "stay"],
        ["0", "Linear", "12", "->", "6", "50%"],
        ["2", "Linear", "6", "->", "3", "50%"],
    ]
    assert str(report(edits[0])).startswith("33 parameters went in 1 step\n")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_it_draws_a_picture(tmp_path: Path, suffix: str) -> None:
    _, edits = pruned()
    path = report(edits).draw(tmp_path / f"widths.{suffix}")
    assert path.stat().st_size > 1000
    if suffix == "svg":
        text = path.read_text()
        assert "6 of 12" in text or "<path" in text


def test_what_is_no_edit_is_refused() -> None:
    with pytest.raises(TypeError, match="edits are Edits"):
        report([1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="nothing to report"):
        report([])
    with pytest.raises(TypeError):
        report(None)  # type: ignore[arg-type]
    assert isinstance(report(pruned()[1]), PruningReport)
