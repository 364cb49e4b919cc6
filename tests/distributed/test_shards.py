"""What stands in for a sharded parameter while an edit runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from splitgrow.distributed.shards import _even


@pytest.mark.parametrize("shape", [(), (3,), (3, 5), (4, 3, 3, 3), (0, 5), (5, 0)], ids=str)
def test_a_stand_in_is_of_one_finite_number_whatever_is_in_memory(shape: tuple[int, ...]) -> None:
    made = _even(torch.full(shape, torch.nan))
    assert made.shape == shape
    assert len(set(made.flatten().tolist())) <= 1
    assert made.isfinite().all()
    assert made.untyped_storage().nbytes() == made.element_size()


def test_a_deep_network_of_stand_ins_neither_overflows_nor_vanishes() -> None:
    weights = [_even(torch.empty(300, 300)) for _ in range(100)]
    x = torch.ones(2, 300)
    for weight in weights:
        x = F.linear(x, weight)
    assert torch.allclose(x, torch.ones(2, 300), atol=1e-3)
    norm = nn.Parameter(_even(torch.empty(300)))
    assert F.layer_norm(torch.randn(2, 300), (300,), norm).isfinite().all()
