"""The sizes of narrower copies, which nobody else knows of."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from cases import CASES

import splitgrow
from splitgrow import Factor
from splitgrow.growth.history_lookup import history_of
from splitgrow.growth.multiply_adds import MacsCounter
from splitgrow.pruning.shrinking.copies import shrink_copy_

CHECKED = [c for c in CASES if c.name in {"u-net", "grouped queries", "deciding", "cells"}]


@pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.name)
def test_the_multiply_adds_of_a_narrower_copy_are_those_after_the_shrink(case) -> None:
    model = splitgrow.growable(case.model(), case.inputs())
    request, state = Factor(0.5).surplus(model), torch.get_rng_state()
    counter = MacsCounter(model)
    (later,) = counter.after([partial(shrink_copy_, request=request)])
    assert torch.equal(torch.get_rng_state(), state)
    assert not history_of(model).edits
    splitgrow.handle(model).shrink(request)
    assert MacsCounter(model).macs == later < counter.macs
