"""The benchmark of pruning: each step can fail, runs resume, and settings are chosen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import splitgrow
from benchmarks.coverage.catalogues import Subject, image
from benchmarks.coverage.outputs import Answer, OutputsDifferError
from benchmarks.coverage.results import unfinished
from benchmarks.learning.networks import Vgg
from benchmarks.learning.tasks import Data, Task
from benchmarks.pruning import accuracy, ours, theirs
from benchmarks.pruning.helps import helps_for, mend_
from benchmarks.pruning.page import accuracy_section, coverage_section, times_table
from benchmarks.pruning.records import Outcome, Record, add, finished, read, tidied
from benchmarks.pruning.steps import UnusedError, gradients, ran, train, widths_of
from benchmarks.pruning.tools import multiply_adds, pruned
from benchmarks.pruning.trying import prune_by_them, prune_by_us, without_cache

pytestmark = [pytest.mark.zoo, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.next = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.next(self.norm(self.conv(x)).relu()).mean((2, 3)))


class Turned(Small):
    """Turns the channels round, which torch-pruning takes for an op on each channel by itself."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        return self.head(self.next(y.flip(1)).mean((2, 3)))


def subject_of(module: type[nn.Module]) -> Subject:
    return Subject("here", "small", "family", module, (image(2, 3, 5, 5),))


def found(module: type[nn.Module]) -> Record:
    record = Record("small")
    prune_by_us(subject_of(module), record)
    prune_by_them(subject_of(module), record)
    return record


def test_a_sound_model_works_in_both_and_loses_as_much() -> None:
    record = found(Small)
    assert (record.ours.status, record.ours.reason) == ("works", "")
    assert (record.peer.status, record.peer.equal) == ("works", "yes")
    assert record.ours.pruned == record.peer.pruned == 2
    assert record.ours.parameters == record.peer.parameters
    assert record.outputs == ["head"]


def test_the_model_of_torch_pruning_is_compared_in_values() -> None:
    record = Record("small", outputs=["head"])
    prune_by_them(subject_of(Turned), record)
    assert (record.peer.status, record.peer.equal) == ("other", "no")
    record.stuck = ["conv"]  # the help that works is found
    prune_by_them(subject_of(Turned), record)
    assert (record.peer.status, record.peer.equal) == ("works", "yes")
    assert record.peer.help == "what splitgrow cannot shrink stays"


def test_a_quarter_goes_and_at_least_a_unit_and_outputs_stay() -> None:
    model = splitgrow.growable(Small(), torch.ones(1, 3, 5, 5))
    assert ours.request_of(model, ours.output_layers(model)) == ({"conv": 2, "next": 1}, 0)
    assert ours.request_of(model, ["conv", "head"]) == ({"next": 1}, 0)


def test_a_parameter_that_trains_no_more_is_seen() -> None:
    model, inputs = Small(), (torch.ones(2, 3, 5, 5),)
    used = gradients(model, inputs, detects=False)
    train(model, inputs, used, detects=False)
    with pytest.raises(UnusedError, match="lost"):
        train(model, inputs, used | {"lost"}, detects=False)


def test_outputs_of_another_shape_or_not_finite_are_seen() -> None:
    model, inputs = Small(), (torch.ones(2, 3, 5, 5),)
    with pytest.raises(OutputsDifferError):
        ran(model, inputs, Answer([torch.ones(2, 3)], []), detects=False)
    nn.init.constant_(model.head.bias, float("nan"))
    with pytest.raises(ArithmeticError):
        ran(model, inputs, Answer([torch.ones(2, 2)], []), detects=False)


def test_widths_are_those_of_the_weights() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 1, groups=2), nn.Linear(3, 5))
    assert widths_of(model) == {"0": 6, "1": 5}


def test_a_cache_is_no_output_of_a_model_of_transformers() -> None:
    class Cached(Small):
        config = SimpleNamespace(use_cache=True)

    whose = {name: replace(subject_of(Cached), library=name) for name in ("timm", "transformers")}
    without_cache(whose["timm"]).build()
    assert Cached.config.use_cache
    without_cache(whose["transformers"]).build()
    assert not Cached.config.use_cache


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.head_dim = 4, 3
        self.qkv = nn.Linear(12, 36)


def test_attentions_are_told_to_torch_pruning_and_mended() -> None:
    model = nn.Sequential(Attention(), nn.Linear(2, 2))
    helps = helps_for(model, ["1"])
    own: Any = model[0]
    assert helps.num_heads == {own.qkv: 4}
    assert helps.ignored == [model[1]]
    own.qkv = helps.attentions[0].joined = nn.Linear(12, 24)
    helps.num_heads = {own.qkv: 4}
    mend_(model, helps)
    assert (own.num_heads, own.head_dim) == (4, 2)


def test_the_attempt_that_came_furthest_is_kept() -> None:
    early, late = Outcome("fails", step="analysis"), Outcome("fails", step="training")
    assert theirs.rank(late) > theirs.rank(early)
    assert theirs.rank(Outcome("works", step="reload")) > theirs.rank(Outcome("other"))


def test_records_of_processes_that_ended_early(tmp_path: Path) -> None:
    partial = Record("a", layers=3).as_dict()
    late = finished(unfinished("a", partial, "build", "timeout"))
    assert (late["ours"]["status"], late["peer"]["status"]) == ("timeout", "not run")
    dead = finished(unfinished("b", {}, "build", "exit code -9"))
    assert dead["ours"]["status"] == "not run"
    done = Record("c", ours=Outcome("works")).as_dict()
    peer = finished(unfinished("c", done, "peer", "timeout"))
    assert (peer["ours"]["status"], peer["peer"]["status"]) == ("works", "timeout")
    path = tmp_path / "runs.jsonl"
    for record in (late, dead, {**late, "layers": 7}):
        add(path, record)
    tidied(path)
    assert len(path.read_text().splitlines()) == 2
    assert read(path)["a"]["layers"] == 7


def test_the_page_names_failures_and_where_the_rival_is_better() -> None:
    works, more = Outcome("works", pruned=1, parameters=5), Outcome("works", pruned=2, parameters=4)
    fails = Outcome("fails", "in forward: no")
    records = [
        Record("a", parameters=10, layers=4, ours=works, peer=more).as_dict(),
        Record("b", parameters=10, layers=4, ours=works, peer=fails).as_dict(),
    ]
    for record in records:
        record["machine"] = {"date": "2026-01-01", "torch": "2"}
    text = coverage_section("here", records)
    assert "| works | 2 | 1 |" in text
    assert "1: fails: in forward: no: `b`" in text
    assert "more layers narrower in 1: `a` (1 and 2 of 4)" in text
    taken = {"case": "resnet50", "way": "splitgrow", "error": "", "left": 7, "memory": 3.0}
    where = {"torch": "2", "date": "2026-01-01", "commit": "abc"}
    measured = [{**taken, "analysis": t, "pruning": t, "machine": where} for t in (1.0, 2.0, 4.0)]
    assert "2.00 (1.00 to 4.00)" in times_table(measured)


@pytest.mark.parametrize("tool", ["splitgrow", "torch-pruning"])
@pytest.mark.parametrize("scope", accuracy.SCOPES)
def test_both_meet_the_target(tool: str, scope: str) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(8, 3, 8, 8), torch.arange(8) % 4
    for criterion in ("group", "taylor"):
        model = Vgg((16, 16), 4)
        whole = multiply_adds(model, x)
        smaller = pruned(tool, model, [(x, y)], criterion, scope, 0.5)
        assert 0.35 < multiply_adds(smaller, x) / whole <= 0.5


def data(_: Path) -> Data:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(96, 3, 8, 8, generator=generator), torch.arange(96) % 4
    return Data((x[:64], y[:64]), (x[64:80], y[64:80]), (x[80:], y[80:]))


TASK = Task(
    "vgg-cifar10",
    "a tiny network on noise",
    lambda: Vgg((4, 4), 4),
    lambda: Vgg((8, 8), 4),
    data,
    (0.05, 0.1),
    (4, 8, 16),
    (1e-3, 1e-2, 1e-1),
)


@pytest.mark.parametrize(
    "arm", ["dense", "from the start", "torch-pruning, l1", "grown, then group"]
)
def test_an_arm_ends_at_its_share(arm: str, tmp_path: Path) -> None:
    job = accuracy.Job(TASK.name, arm, 0.05, "layer", 1e-3, 0)
    run = accuracy.Training(TASK, job, tmp_path).run()
    assert not run.refused
    assert run.share == 1 if arm == "dense" else run.share <= accuracy.SHARE
    again = accuracy.Training(TASK, job, tmp_path).run()
    assert again.test == run.test, "the network that was kept is the one that was trained"


def test_all_settings_are_tried_on_one_seed_and_the_best_run_on_all(tmp_path: Path) -> None:
    runs: list[accuracy.Run] = []
    while left := [*accuracy.missing(TASK.name, 1.0, runs, 3)]:
        job = left[0]
        score = job.rate + (job.scope == "global")
        runs.append(accuracy.Run(job, 0.5, 1.0, 2.0, 3.0, score, 4))
    own = [run.job for run in runs if run.job.arm == "splitgrow, l1"]
    assert len(own) == 4 + 2
    assert {(job.scope, job.rate) for job in own if job.seed} == {("global", max(accuracy.RATES))}
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps({**asdict(run), "machine": {}}) + "\n" for run in runs))
    assert accuracy.read(path) == runs
    assert "| splitgrow, l1 | 1.0 ± 0.0 |" in accuracy_section(TASK.name, runs)
