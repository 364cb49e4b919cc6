"""Growth of a model that several processes train, over gloo on one machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import distributed_work as work
import pytest
import torch
from distributed_work import Tensors
from processes import FailedError, in_processes

import splitgrow
from splitgrow.distributed.agreement import judged
from splitgrow.distributed.storing import opened_manifest

HOWS = ("ddp", "fsdp")


def differing(one: Tensors, other: Tensors) -> list[str]:
    """The names of tensors that are not the same bit for bit."""
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


def distance(one: Tensors, other: Tensors) -> float:
    """The largest difference of two models' tensors."""
    assert one.keys() == other.keys()
    assert all(one[name].shape == other[name].shape for name in one)
    return max((one[name] - other[name]).abs().max().item() for name in one)


@cache
def alone(optimizer: str) -> Tensors:
    return work.alone(optimizer)


@cache
def together(how: str, world: int, optimizer: str) -> dict[int, Tensors]:
    return in_processes(world, work.the_story, how, optimizer)


# -- what holds through growth ---------------------------------------------------------------------


@pytest.mark.parametrize(("world", "optimizer"), [(2, "adam"), (4, "momentum")])
@pytest.mark.parametrize("how", HOWS)
def test_ranks_stay_equal_bit_for_bit_and_equal_one_process(how, world, optimizer) -> None:
    found = together(how, world, optimizer)
    assert not [name for rank in found for name in differing(found[rank], found[0])]
    assert distance(found[0], alone(optimizer)) < 1e-9


def test_ranks_that_do_not_share_what_is_new_drift_apart() -> None:
    found = in_processes(2, work.the_story, "ddp", "adam", False)
    assert differing(found[0], found[1])


def test_the_comparison_with_one_process_sees_the_values_of_what_is_new() -> None:
    assert distance(alone("adam"), work.alone("adam", seed=8)) > 1e-9


@pytest.mark.parametrize("how", HOWS)
def test_parameters_optimizer_and_schedule_stay(how: str) -> None:
    in_processes(2, work.one_layer, how)


def test_a_model_that_is_sharded_and_replicated_grows() -> None:
    found = in_processes(4, work.hybrid)
    assert not [name for rank in found for name in differing(found[rank], found[0])]
    assert distance(found[0], work.hybrid_alone()) < 1e-9


def test_each_rank_keeps_its_own_random_state() -> None:
    found = in_processes(2, work.own_randomness)
    for expected, actual in found.values():
        assert torch.equal(expected, actual)
    assert not torch.equal(found[0][1], found[1][1])


def test_ranks_stay_equal_where_batch_norms_see_their_own_shares() -> None:
    found = in_processes(2, work.with_batch_norm)
    assert not differing(found[0], found[1])


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_streams_and_vocabularies_of_tied_models_grow_as_in_one_process(how: str) -> None:
    expected, tied = work.tied_story("alone", 0, 1)
    assert tied
    for found, still in in_processes(2, work.tied_together, how).values():
        assert still
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-10)


@pytest.mark.parametrize("how", HOWS)
def test_experts_grow_as_in_one_process(how: str) -> None:
    expected = work.experts_story("alone", shared=how)
    for found in in_processes(2, work.experts_together, how).values():
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-10)


def test_a_model_inside_what_is_wrapped_grows_and_one_that_is_not_wrapped() -> None:
    found = in_processes(2, work.inner_and_plain)
    assert found[0] == found[1]


@pytest.mark.parametrize("how", HOWS)
def test_initializers_read_and_change_the_values_of_all_ranks_alike(how: str) -> None:
    """The first rank's choices count, of existing values as of new ones; a failed one is undone."""
    found = in_processes(2, work.initialised, how)
    assert found[0][0] == found[1][0]
    tensors, moved, errors, losses = found[0]
    assert len(set(tensors)) == 4
    assert losses == found[1][3]
    assert losses[0] == pytest.approx(losses[1], rel=1e-11)  # the loss of all processes
    assert losses[1][1] < losses[1][0] - 1e-3
    assert max(moved[:4]) < 1e-12  # a pair, and shares of what there was
    assert moved[5] == found[1][1][5] > 1e-3
    assert len(errors) == len(found[1][2]) == 1
    assert "nothing is changed on any" in errors[0]


# -- all ranks or none -----------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOWS)
def test_what_one_rank_cannot_follow_changes_nothing_on_any(how: str) -> None:
    found = in_processes(2, work.refused, how)
    assert found[0] == found[1]
    errors = dict(found[0])
    weights = errors.pop("weights")
    assert errors.pop("nowhere possible").startswith("ValueError: n (=0)")
    assert all(e.startswith("DistributedError: ") for e in errors.values())
    assert all("nothing is changed on any" in e for e in errors.values())
    assert re.search(r"the request differs: rank 0 .*2.*, rank 1 .*4", errors["another number"])
    assert "the request differs" in errors["another kind"]
    assert "the optimizer differs" in errors["another optimizer"]
    for name in ("not planned", "not applied", "not shared", "not closed", "not inserted"):
        assert "rank 1 failed with MemoryError: no room left" in errors[name]
    assert "while planning and growing" in errors["not applied"]
    assert "while sharing what is new" in errors["not shared"]
    assert set(in_processes(2, work.not_refused, how).values()) == {weights}


@pytest.mark.parametrize(("how", "lost", "gone"), [("ddp", 0, True), ("fsdp", 1, False)])
def test_a_rank_that_does_not_come_stops_the_others(how: str, lost: int, gone: bool) -> None:
    found = in_processes(3, work.lost_rank, how, lost, gone, lost=(lost,))
    for rank in {0, 1, 2} - {lost}:
        assert found[rank].startswith("DistributedError: ")
        assert f"rank {lost} did not answer" in found[rank]


def test_a_rank_that_dies_while_all_grow_stops_the_others() -> None:
    found = in_processes(2, work.lost_while_growing, lost=(1,))
    assert found[0].startswith("DistributedError: ")
    assert "rank 1 did not answer" in found[0]


def test_a_first_rank_that_comes_too_late_stops_with_the_others() -> None:
    found = in_processes(2, work.late_first_rank)
    assert "rank 0 did not answer" in found[1]
    assert "rank 1 did not answer" in found[0]


def test_what_an_earlier_run_left_in_the_store_is_not_believed() -> None:
    found = in_processes(2, work.among_leftovers)
    assert found[0] == found[1]


def test_an_interruption_stops_the_others() -> None:
    found = in_processes(2, work.interrupted)
    assert found[1] == "KeyboardInterrupt: "
    assert "rank 1 failed with KeyboardInterrupt" in found[0]


def test_growth_behind_a_wrappers_back_is_refused() -> None:
    found = in_processes(1, work.forgotten)
    *replicated, sharded, merged, analysed = found[0]
    assert len(replicated) == 10
    assert "use the function of that name in splitgrow.distributed" in replicated[0]
    assert "splitgrow.distributed" not in replicated[-1]
    for error in replicated:
        assert error.startswith("UnsupportedModelError: cannot ")
        assert "DistributedDataParallel wraps the model" in error
    assert "FSDP has sharded the model" in sharded
    assert "make it growable before it is sharded" in analysed
    assert "merge it inside `with splitgrow.distributed.gathered" in merged


@pytest.mark.parametrize("how", work.HELD)
def test_a_change_that_another_holder_would_miss_is_refused(how: str, tmp_path: Path) -> None:
    errors, afterwards = in_processes(1, work.held_elsewhere, how, str(tmp_path))[0]
    assert len(errors) >= 3
    for error in errors:
        assert error.startswith("UnsupportedModelError: ")
        assert work.HELD[how][1] in error
    assert set(afterwards) <= {"nothing"}


def test_control_a_change_that_nobody_would_miss_is_made(tmp_path: Path) -> None:
    errors = in_processes(1, work.held_by_nothing, str(tmp_path))[0]
    assert errors == ["nothing"] * len(work.CHANGES)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_model_grows_through_the_wrapper_around_the_module_that_holds_it(how: str) -> None:
    in_processes(2, work.grown_through_the_wrapper_around, how)


def test_an_average_follows_with_the_same_values_in_every_process() -> None:
    in_processes(2, work.average_that_follows)


def test_what_cannot_be_followed_is_refused_with_a_way_out() -> None:
    found = in_processes(2, work.unsupported)
    assert found[0] == found[1]
    hooked, ignoring, together, several, plain = found[0]
    assert "powerSGD_hook keeps state by bucket" in hooked
    assert "ignored_params" in ignoring
    assert "sharded together with other modules" in together
    assert "several growable models (0, 1)" in several
    assert "holds no growable model" in plain


def test_without_a_process_group_the_call_says_what_is_missing() -> None:
    with pytest.raises(splitgrow.DistributedError, match="init_process_group"):
        splitgrow.distributed.expand_layer(work.network(), "0", 2)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        splitgrow.distributed.expand_layer(3, "0", 2)


def test_ballots_that_begin_alike_are_told_apart() -> None:
    ballots = {
        r: {"parts": {"model": [mark, "5 tensors"]}, "error": ""} for r, mark in enumerate("aab")
    }
    assert judged(ballots) == ["the model differs: ranks 0, 1 has a, rank 2 has b"]
    assert judged({rank: ballots[rank] for rank in (0, 1)}) == []


# -- wrappers --------------------------------------------------------------------------------------


def test_a_wrapper_keeps_its_options() -> None:
    in_processes(2, work.options_of_ddp)


def test_a_generation_may_be_closed_and_nothing_train() -> None:
    in_processes(2, work.nothing_trains)


def test_a_grown_layer_is_the_unit_that_it_was() -> None:
    in_processes(2, work.options_of_fsdp)


def test_a_grown_model_can_be_sharded_and_sees_every_change() -> None:
    expected = work.sharded_afterwards_alone()
    found = in_processes(2, work.sharded_afterwards)
    views, tensors = found[0]
    assert views
    assert not differing(tensors, found[1][1])
    assert distance(tensors, expected) < 1e-9


def test_a_parameter_that_pointed_elsewhere_would_miss_changes() -> None:
    _, tensors = in_processes(2, work.sharded_afterwards, False)[0]
    assert distance(tensors, work.sharded_afterwards_alone()) > 1e-9


def test_blocks_that_are_sharded_one_by_one_train_as_in_one_process() -> None:
    found = in_processes(2, work.blocks_sharded_one_by_one)
    assert distance(found[0], work.blocks_alone()) < 1e-9


def test_grown_layers_keep_nothing_of_what_is_sharded() -> None:
    replicated, sharded = in_processes(1, work.kept_by_layers)[0]
    assert replicated > 0
    assert sharded == 0


def test_closed_generations_of_a_sharded_model_are_exact_and_it_merges() -> None:
    in_processes(2, work.views_of_sharded)


# -- checkpoints -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Where two processes, by their wrapper, have saved the story in the middle."""
    places = {how: str(tmp_path_factory.mktemp(how)) for how in HOWS}
    for how, place in places.items():
        in_processes(2, work.the_story, how, "adam", True, place, slice(0, 7))
    return places


@pytest.mark.parametrize("how", HOWS)
def test_another_number_of_processes_goes_on_from_a_checkpoint(how, halfway) -> None:
    rest = "adam", True, halfway[how], slice(7, None)
    found = in_processes(4, work.the_story, how, *rest)
    assert not [name for rank in found for name in differing(found[rank], found[0])]
    assert distance(found[0], alone("adam")) < 1e-9


def test_the_same_processes_go_on_bit_for_bit(halfway) -> None:
    rest = "adam", True, halfway["fsdp"], slice(7, None)
    again = in_processes(2, work.the_story, "fsdp", *rest)
    assert not differing(again[0], together("fsdp", 2, "adam")[0])


@pytest.mark.parametrize(("how", "there", "world"), [("ddp", "fsdp", 3), ("fsdp", "fsdp", 2)])
def test_a_checkpoint_brings_everything_back_bit_for_bit(
    how: str, there: str, world: int, tmp_path: Path
) -> None:
    before = in_processes(2, work.saved, how, str(tmp_path))
    after = in_processes(world, work.loaded, there, str(tmp_path))
    for rank in after:
        assert not differing(after[rank][0], before[0][0])
        assert not differing(after[rank][1], before[0][1])
    for rank in before:
        assert torch.equal(after[rank][2], before[rank][2])
    assert not torch.equal(after[0][2], after[1][2])


def test_a_rank_that_dies_while_saving_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    before = in_processes(2, work.killed_while_saving, str(tmp_path), lost=(1,))[0]
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["000001", "latest"]
    extra, found = in_processes(1, work.read_again, str(tmp_path))[0]
    assert (extra, found) == (None, before)


@pytest.mark.parametrize("where", ["writing", "renaming", "naming"])
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(where: str, tmp_path: Path) -> None:
    in_processes(1, work.all_killed_while_saving, str(tmp_path), where, lost=(0,))
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) > 1
    extra, _ = in_processes(1, work.read_again, str(tmp_path))[0]
    assert extra == "first"
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["000002", "latest"]


def test_a_load_that_one_rank_cannot_follow_changes_nothing(tmp_path: Path) -> None:
    in_processes(2, work.saved, "fsdp", str(tmp_path))
    found = in_processes(2, work.not_loaded, str(tmp_path))[0]
    assert len(found) == 12
    for name, error in found:
        if name == "nowhere":
            assert error.startswith("CheckpointError: ")
            assert "holds no checkpoint" in error
        elif name == "another optimizer":
            assert "saved was the optimizer AdamW, given is the optimizer SGD" in error
        else:
            assert error.startswith("DistributedError: load was stopped")
            assert "MemoryError: no room left" in error


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    in_processes(1, work.saved, "ddp", str(tmp_path))
    opened_manifest(tmp_path)
    (file,) = (tmp_path / "000001").glob("*.distcp")
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(splitgrow.CheckpointError, match="it was"):
        opened_manifest(tmp_path)
    file.unlink()
    with pytest.raises(splitgrow.CheckpointError, match="is missing"):
        opened_manifest(tmp_path)
    (tmp_path / "000001" / "splitgrow.json").write_text('{"version": 99}')
    with pytest.raises(splitgrow.CheckpointError, match="version 99"):
        opened_manifest(tmp_path)
    (tmp_path / "latest").write_text("../elsewhere")
    with pytest.raises(splitgrow.CheckpointError, match="does not name a checkpoint"):
        opened_manifest(tmp_path)


def test_a_state_dict_that_would_make_a_wrapped_model_grow_is_refused() -> None:
    replicated, sharded = in_processes(1, work.behind_the_back)[0]
    assert "DistributedDataParallel wraps the model" in replicated
    assert "do it before that is made" in replicated  # no function of splitgrow.distributed does it
    assert "FSDP has sharded the model" in sharded


# -- the example -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_example_of_the_page_grows_saves_and_goes_on_in_more_processes(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    shown = (
        (root / "docs" / "processes.md")
        .read_text()
        .split("<!-- torchrun command -->\n```bash\n")[1]
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    said = []
    for command in shown.split("\n```")[0].splitlines():
        program, *options = command.split()
        assert program == "torchrun"
        found = subprocess.run(
            [*torchrun, *options, "--out", str(tmp_path / "out")],
            cwd=root,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert found.returncode == 0, found.stderr
        said.append(found.stdout)
    assert "step 40" in said[0]
    assert "Edit 2 (generation 1): 3 +16, 7 +32" in said[0]
    assert "done: step 80" in said[0]
    assert "going on from step 80 in 3 processes" in said[1]
    assert "done: step 120" in said[1]


# -- the harness, and the library's weight ---------------------------------------------------------


def test_a_process_that_fails_fails_the_test() -> None:
    with pytest.raises(FailedError, match="not on this one"):
        in_processes(2, work.fails)


def test_the_library_does_not_import_it_before_it_is_asked_for() -> None:
    code = (
        "import sys, splitgrow;"
        "assert 'splitgrow.distributed' not in sys.modules;"
        "assert 'torch.distributed.fsdp' not in sys.modules;"
        "assert splitgrow.distributed.expand_layer.__doc__"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
