from __future__ import annotations

from typing import Any

import torch
from torch import nn

import splitgrow
from splitgrow.growth.edits import Edit
from splitgrow.pruning import report


def test_rows_are_in_order_of_execution_whichever_edit_has_them_first() -> None:
    layers = [nn.Linear(6, 6) for _ in range(5)]
    model: Any = splitgrow.growable(nn.Sequential(*layers), torch.ones(1, 6))
    edits: list[Edit] = [
        model.shrink_layer(name, 1)
        for name in ("3", "1", "0", "2", "1")  # no order of execution
    ]
    assert [row.layer for row in report(edits).rows] == ["0", "1", "2", "3"]
    assert [row.layer for row in report(edits[:2]).rows] == ["1", "3"]
    first = [removal.name for edit in edits for removal in edit.removed]
    assert list(dict.fromkeys(first)) != ["0", "1", "2", "3", "4"]  # control
