"""The execution mode: set for a block, restored after it, the same function in every mode."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from cases import CASES, Case
from helpers import assert_equal, outputs_of, randomise, randomise_new_blocks

import splitgrow
from splitgrow.layers.execution import Mode, execution_mode


def test_the_mode_holds_inside_the_block_and_is_put_back_after_it() -> None:
    assert execution_mode() == "auto"
    with splitgrow.execution("merged"):
        with splitgrow.execution("blockwise"):
            assert execution_mode() == "blockwise"
        assert execution_mode() == "merged"
    assert execution_mode() == "auto"


def test_the_mode_is_put_back_after_an_error_too() -> None:
    def fail() -> None:
        with splitgrow.execution("merged"):
            raise RuntimeError(execution_mode())

    with pytest.raises(RuntimeError, match="merged"):
        fail()
    assert execution_mode() == "auto"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_mode_computes_the_same(case: Case) -> None:
    (x,) = case.inputs()
    model: Any = splitgrow.growable(randomise(case.model()), x)
    layer = next(layer for layer in model.layers if layer.growable)
    model.expand_layer(layer.name, layer.step)
    randomise_new_blocks(model)
    expected = outputs_of(splitgrow.merge(model), x)
    for mode in get_args(Mode):
        with splitgrow.execution(mode), torch.no_grad():
            assert_equal(model(x), expected)
