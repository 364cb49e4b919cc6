"""Policies for a model that several processes train."""

from __future__ import annotations

from functools import cache
from typing import Any

import grower_work as work
import pytest
import torch
from processes import in_processes
from torch import nn

import splitgrow
from splitgrow import Every, Grower, UnsupportedModelError


@cache
def together() -> dict[int, Any]:
    return in_processes(2, work.all_rules)


@pytest.mark.parametrize("rule", work.RULES)
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_ranks_with_other_metrics_and_samples_grow_alike(how, rule) -> None:
    first, second = (together()[rank][f"{how} {rule}"] for rank in (0, 1))
    for name in ("grown", "widths", "macs", "parameters"):
        assert torch.equal(first[name], second[name]), name
    assert int(first["grown"].sum()) == 2
    if rule == "steps":
        assert first["macs"][0] == first["macs"][1]
        assert first["grown"].nonzero().flatten().tolist() == [1, 3]
    else:
        assert torch.equal(first["spent"], second["spent"])


def test_the_first_rank_s_score_chooses() -> None:
    widths = together()[0]["ddp metric"]["widths"].tolist()
    assert widths == [6, 4, 12, 3]  # rank 0 prefers "6", rank 1 "3"


@pytest.mark.parametrize("score", work.MEASURED)
def test_a_score_is_measured_on_all_of_a_sharded_model(score: str) -> None:
    """It chooses as for a model that each process has whole."""
    first, second = together()
    sharded, whole = together()[first][f"fsdp {score}"], together()[first][f"ddp {score}"]
    assert torch.equal(sharded, whole)
    assert torch.equal(sharded, together()[second][f"fsdp {score}"])
    assert whole.tolist() not in ([6, 4, 8, 3], [9, 6, 12, 3]), "some layers grow, others do not"


@cache
def shrunk() -> dict[int, Any]:
    return in_processes(2, work.all_shrinks)


@pytest.mark.parametrize("name", work.SHRINKS)
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_ranks_shrink_alike_and_a_sharded_model_as_a_whole_one(how: str, name: str) -> None:
    first, second = (shrunk()[rank][f"{how} {name}"] for rank in (0, 1))
    for what, value in first.items():
        assert torch.equal(value, second[what]), what
    assert first["done"]
    assert torch.equal(first["widths"], shrunk()[0][f"ddp {name}"]["widths"])
    if name == "factor":
        assert first["widths"].tolist() == [4, 2, 4, 3]


def test_control_processes_that_do_not_agree_grow_at_other_steps() -> None:
    first, second = (together()[rank]["alone"]["grown"] for rank in (0, 1))
    assert not torch.equal(first, second)


def test_data_parallel_is_one_process_and_refused_with_the_way_out() -> None:
    net = splitgrow.growable(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), torch.ones(1, 2))
    with pytest.raises(UnsupportedModelError, match="the model inside it"):
        Grower(nn.DataParallel(net), None, when=Every(1))
