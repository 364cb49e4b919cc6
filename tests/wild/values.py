"""Values for the new parts of a grown model, so that they count."""

from __future__ import annotations

from typing import Any

import torch
from helpers import _randomise_own, split_layers

import splitgrow


@torch.no_grad()
def give_values_(model: Any) -> None:
    """Gives new units values that matter; what reads them still has zeros, which hide them.

    Where it is the other way round, since new units must be silent at birth, all is left alone.
    """
    edit = splitgrow.handle(model).edits[-1]
    if any({*change.start_ins, *change.start_outs} - {"free"} for change in edit.changes):
        return
    for split in split_layers(model):
        for module, block in zip(split, split.blocks, strict=True):
            if block.kind == "new":
                _randomise_own(module)


@torch.no_grad()
def shrink_(model: Any) -> None:
    """Makes the values of new units smaller."""
    for split in split_layers(model):
        for module, block in zip(split, split.blocks, strict=True):
            if block.kind == "new":
                for parameter in module.parameters(recurse=False):
                    parameter.mul_(0.1)


@torch.no_grad()
def stir_(model: Any) -> None:
    """Moves all that is new, so that it counts."""
    for parameter in splitgrow.handle(model).generation_parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.3)
