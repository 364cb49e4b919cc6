"""Pruning a model that several processes train, over gloo on one machine."""

from __future__ import annotations

from functools import cache
from typing import Any

import distributed_shrinking as work
import pytest
import torch
from processes import in_processes

hows = pytest.mark.parametrize("how", ["ddp", "fsdp"])
criteria = pytest.mark.parametrize("criterion", [*work.PRUNED])


@cache
def together() -> dict[int, Any]:
    """What two processes come to, by rank."""
    return in_processes(2, work.pruned)


@hows
@criteria
def test_pruning_is_that_of_one_process_with_all_batches(how: str, criterion: str) -> None:
    """Parameters, the optimizer's state and the steps after it; the scores are means of both."""
    expected = work.pruned_alone(criterion)
    first, second = (together()[rank][f"{how} {criterion}"] for rank in (0, 1))
    assert work.distance(first["tensors"], expected["tensors"]) < 1e-11
    assert work.distance(first["states"], expected["states"]) < 1e-11
    assert first["edit"] == second["edit"] == expected["edit"]
    for name, tensor in first["tensors"].items():
        assert torch.equal(tensor, second["tensors"][name])


@criteria
def test_control_one_processs_batches_alone_come_to_another_model(criterion: str) -> None:
    both = work.pruned_alone(criterion)["tensors"]
    for rank in (0, 1):
        one = work.pruned_alone(criterion, range(rank, rank + 1))["tensors"]
        shapes = [{name: tensor.shape for name, tensor in found.items()} for found in (one, both)]
        assert shapes[0] != shapes[1] or work.distance(one, both) > 1e-6


@hows
def test_a_pruning_that_one_rank_cannot_follow_changes_nothing_on_any(how: str) -> None:
    errors = together()[0][f"errors of {how}"]
    assert errors == together()[1][f"errors of {how}"]
    assert "the request differs" in errors["another amount"]
    assert errors["a loss of one"].startswith("DistributedError: prune was stopped on all 2 ranks")
    assert "rank 1 failed with MemoryError: no room left" in errors["a loss of one"]
    assert "the average differs: rank 0 has" in errors["fewer layers"]
    assert errors["too little"].startswith("ValueError: amount=0.01 leaves every layer as it is")
    assert errors["no batches"].startswith("ValueError: this needs data")
    assert errors["no steps"].startswith("TypeError: steps must be an int")
