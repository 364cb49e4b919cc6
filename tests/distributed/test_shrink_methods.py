"""Shrinking a model that several processes train, over gloo on one machine."""

from __future__ import annotations

from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import distributed_shrinking as work
import pytest
import torch
from processes import in_processes

hows = pytest.mark.parametrize("how", ["ddp", "fsdp"])


@cache
def together(how: str) -> dict[int, Any]:
    """What two processes come to, by rank."""
    with TemporaryDirectory() as folder:
        return in_processes(2, work.all_of, how, folder)


@cache
def alone() -> dict[str, Any]:
    return work.story_alone()


@hows
def test_shrinking_and_what_follows_is_that_of_one_process(how: str) -> None:
    """Parameters, the optimizer's state and the steps after it, through growth and shrinking."""
    expected = alone()
    for rank in (0, 1):
        found = together(how)[rank]["story"]
        assert work.distance(found["tensors"], expected["tensors"]) < 1e-11
        assert work.distance(found["states"], expected["states"]) < 1e-11
        assert found["edits"] == expected["edits"]
        assert found["hooks"] == []


def test_control_the_comparison_sees_which_channels_went() -> None:
    assert work.distance(work.story_alone(other=True)["tensors"], alone()["tensors"]) > 1e-6


@hows
def test_a_shrunk_model_goes_on_from_a_checkpoint_bit_for_bit(how: str) -> None:
    found = together(how)[0]["story"]
    for kind in ("tensors", "states"):
        resumed = found[f"{kind} of the resumed"]
        assert work.distance(found[kind], resumed) == 0.0


@hows
def test_ranks_that_shrink_stay_equal_bit_for_bit(how: str) -> None:
    first, second = (together(how)[rank]["story"] for rank in (0, 1))
    assert all(
        torch.equal(first["tensors"][name], second["tensors"][name]) for name in second["tensors"]
    )


@hows
def test_a_shrinking_that_one_rank_cannot_follow_changes_nothing_on_any(how: str) -> None:
    errors = dict(together(how)[0]["refused"])
    assert errors == together(how)[1]["refused"]
    assert errors.pop("afterwards") == "True"
    alike = {
        name: errors.pop(name)
        for name in ("closed units", "half a unit", "everything", "with a hook")
    }
    assert alike["closed units"].startswith("GenerationError: units of closed generation 0")
    assert "the channels 0 to 1 of `0` are one unit" in alike["half a unit"]
    assert "would have no units left" in alike["everything"]
    assert alike["with a hook"].startswith("UnsupportedLayerError: the `weight` of `8` has hooks")
    assert "the request differs" in errors.pop("another number")
    assert "the request differs" in errors.pop("other channels")
    assert "the optimizer differs" in errors.pop("another optimizer")
    assert "while choosing" in errors["not chosen"]
    assert "while planning and growing" in errors["not checked"]
    assert "while sharing what is new" in errors["not settled"]
    assert len(errors) == 5
    for error in errors.values():
        assert error.startswith("DistributedError: shrink was stopped on all 2 ranks")
        assert "nothing is changed on any: rank 1 failed with MemoryError: no room left" in error


def test_the_first_ranks_weakest_units_go_where_ranks_have_weights_of_their_own() -> None:
    first, second = (together("ddp")[rank]["own"] for rank in (0, 1))
    assert first["own"] != second["own"]  # or this would show nothing
    assert first["gone"] == second["gone"] == first["own"]
    assert first["kept"]
    assert second["kept"]
    assert first["moved"] == second["moved"] > 1e-3


def test_an_average_loses_the_same_channels_in_every_process() -> None:
    for rank in (0, 1):
        same, shapes, apart = together("ddp")[rank]["average"]
        assert same
        assert shapes
        assert apart == 0.0
