"""The coverage benchmark: a few small models through it, and its own logic without any model."""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import splitgrow
from benchmarks.coverage import checking
from benchmarks.coverage.catalogues import Subject, find, image
from benchmarks.coverage.findings import EXACT, STATUSES, Findings, tidy, verdict
from benchmarks.coverage.outputs import Answer, OutputsDifferError, check_shapes, difference
from benchmarks.coverage.page import page
from benchmarks.coverage.peers import ask_peer
from benchmarks.coverage.results import Results, matching, to_do, unfinished
from benchmarks.coverage.running import Limits, check_all
from benchmarks.coverage.sizes import smallest_of_each
from benchmarks.coverage.summary import general
from benchmarks.vision import nms
from splitgrow.errors import SplitGrowError

pytestmark = pytest.mark.zoo

MODELS = (
    ("torchvision", "squeezenet1_1"),
    ("torchvision", "shufflenet_v2_x0_5"),
    ("timm", "resnet10t"),
    ("timm", "tf_mobilenetv3_small_minimal_100"),
    ("timm", "test_vit"),
    ("transformers", "BertForSequenceClassification"),
    ("transformers", "GPT2LMHeadModel"),
    ("transformers", "LlamaForCausalLM"),
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the libraries', about themselves
@pytest.mark.parametrize(("library", "name"), MODELS)
def test_models_of_other_libraries_grow_and_the_laws_hold(library: str, name: str) -> None:
    found = checking.check(find(library, name))
    assert (found.status, found.reason) == ("verified", "")
    assert found.values == "float64"
    assert found.grown > 0


class Small(nn.Module):
    """A network whose layer scale would hide everything behind it if it kept its first values."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.gamma = nn.Parameter(torch.full((2,), 1e-6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(x)).mean((2, 3))) * self.gamma


class Frozen(nn.Module):
    """A network that has no layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


class Failing(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise OSError("no such luck")


def subject_of(module: type[nn.Module]) -> Subject:
    return Subject("here", "small", "family", module, (image(2, 3, 5, 5),))


def test_a_sound_model_is_verified() -> None:
    told = []
    found = checking.check(subject_of(Small), lambda step, _: told.append(step))
    assert (found.status, found.reason) == ("verified", "")
    assert (found.grown, found.kinds) == (2, {"Conv2d": [1, 1], "Linear": [1, 1]})
    assert found.fuse == "ok"
    assert told == ["build", "analysis", "growth", "comparison", "merge", "fuse"]


class Single(Small):
    """A network that takes single precision only."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.float())


def test_a_model_of_single_precision_is_allowed_its_own_rounding() -> None:
    found = checking.check(subject_of(Single))
    assert (found.status, found.values) == ("verified", "float32")
    assert 1e-5 <= found.tolerance <= 1e-3


def test_a_model_without_layers_is_fixed() -> None:
    assert checking.check(subject_of(Frozen)).status == "fixed"


def test_a_model_that_does_not_run_is_unbuildable() -> None:
    found = checking.check(subject_of(Failing))
    assert (found.status, found.reason) == ("unbuildable", "OSError: no such luck")


def test_a_large_model_is_checked_by_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.coverage.preparing.SMALL", 1)
    found = checking.check(subject_of(Small))
    assert (found.status, found.values) == ("shapes verified", "shapes only")


def test_a_merge_that_computes_something_else_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = splitgrow.merge

    @torch.no_grad()
    def crooked(model: nn.Module) -> nn.Module:
        merged: Any = honest(model)
        merged.head.bias += 1e-6
        return merged

    monkeypatch.setattr(checking.splitgrow, "merge", crooked)
    found = checking.check(subject_of(Small))
    assert found.status == "wrong"
    assert "the merged model differs" in found.reason


def test_a_merge_that_returns_the_grown_model_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking.splitgrow, "merge", copy.deepcopy)
    found = checking.check(subject_of(Small))
    assert found.status == "wrong"
    assert "parts of splitgrow" in found.reason


def test_growth_that_moves_the_past_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = checking.grow_all

    @torch.no_grad()
    def crooked(model: Any, found: Findings) -> None:
        honest(model, found)
        next(model.parameters()).add_(1e-6)

    monkeypatch.setattr(checking, "grow_all", crooked)
    found = checking.check(subject_of(Small))
    assert found.status == "wrong"
    assert "growing changed the outputs" in found.reason
    assert "bit for bit" in found.reason


@pytest.mark.parametrize(
    ("error", "step", "status"),
    [
        (SplitGrowError("not this one"), "growable", "refused"),
        (KeyError("oops"), "growable", "wrong"),
        (SplitGrowError("after all"), "merge", "wrong"),
    ],
)
def test_errors_of_splitgrow_are_refusals_only_in_analysis(
    monkeypatch: pytest.MonkeyPatch, error: Exception, step: str, status: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(checking.splitgrow, step, fail)
    assert checking.check(subject_of(Small)).status == status


GOOD = {"same": 0.0, "changed": 0.5, "past": 1, "merge": 1e-15, "fuse": 1e-14, "plain": 1}


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "verified"),
        ({"same": 2 * EXACT}, "wrong"),
        ({"same": float("nan")}, "wrong"),
        ({"past": 0}, "wrong"),
        ({"merge": 2 * EXACT}, "wrong"),
        ({"fuse": 2 * EXACT}, "wrong"),
        ({"plain": 0}, "wrong"),
        ({"changed": 0.0}, "blind"),
        ({"changed": float("nan")}, "blind"),
    ],
)
def test_one_broken_law_decides(changes: dict[str, float], status: str) -> None:
    assert verdict(Findings("x", values="float64", grown=1, laws=GOOD | changes))[0] == status


def test_a_law_that_was_not_measured_is_not_taken_for_true() -> None:
    for law in GOOD.keys() - {"fuse"}:
        laws = {name: value for name, value in GOOD.items() if name != law}
        assert verdict(Findings("x", values="float64", grown=1, laws=laws))[0] == "wrong"


def test_a_difference_compares_leading_parts_and_misses_nothing() -> None:
    old = Answer([torch.ones(2, 3)], [])
    assert difference(Answer([torch.ones(2, 5)], []), old) == 0
    assert difference(Answer([torch.full((2, 3), 1.5)], []), old) == 0.5
    for other in ([], [torch.ones(2, 2)], [torch.ones(2)]):
        with pytest.raises(OutputsDifferError):
            difference(Answer(other, []), old)
    with pytest.raises(OutputsDifferError, match="shapes"):
        check_shapes(Answer([torch.ones(2, 5)], []), old)


def test_places_of_this_machine_are_left_out() -> None:
    for start in ("/home/me/v", ".venv", "my-venv.3"):
        place = f"at {start}/lib/python3.11/site-packages/timm/a.py:3\n no"
        assert tidy(place) == "at timm/a.py:3 no"
    assert len(tidy("x" * 999)) == 200


def record(name: str, status: str, **more: Any) -> dict[str, Any]:
    found = Findings(name, family=name[0], status=status, reason=f"{status}, you see")
    return {**found.as_dict(), **more}


def test_results_are_taken_up_where_they_were_left(tmp_path: Path) -> None:
    results = Results("timm", tmp_path)
    results.add(record("a", "verified"))
    results.add(record("b", "refused"))
    assert [path.name for path in tmp_path.iterdir()] == ["coverage-timm.json"]
    again = Results("timm", tmp_path)
    assert again.models == results.models
    names = ["c", "b", "a"]
    assert to_do(names, again.models) == ["c"]
    assert to_do(names, again.models, again_failed=True) == ["c", "b"]
    assert to_do(names, again.models, again=True) == names
    assert matching(["resnet18", "vgg11"], "res*") == ["resnet18"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    results = Results("timm", tmp_path)
    results.add(record("a", "verified"))
    with pytest.raises(TypeError):
        results.add({"name": "b", "status": object()})
    assert json.loads(results.path.read_text())["models"].keys() == {"a"}


def test_a_process_that_ends_early_is_blamed_on_its_step() -> None:
    assert unfinished("a", {}, "build", "exit code -9")["status"] == "unbuildable"
    assert unfinished("a", {}, "merge", "exit code -9")["status"] == "wrong"
    assert unfinished("a", {}, "merge", "timeout")["status"] == "timeout"
    late = unfinished("a", record("a", "verified"), "peer", "timeout")
    assert (late["status"], late["peer"]["status"]) == ("verified", "timeout")


def pretend(library: str, name: str, peer: bool, messages: Connection) -> None:
    """Stands in for a model's process."""
    messages.send(("growth", {"name": name, "parameters": 7}))
    if name == "late":
        time.sleep(60)
    if name == "dead":
        os._exit(3)
    messages.send(("done", {"name": name, "status": "verified"}))


@pytest.mark.slow
def test_each_model_has_a_process_and_a_limit() -> None:
    found = {}
    for names, seconds in ((["dead", "good"], 300), (["late"], 15)):
        limits = Limits(seconds=seconds, peer_seconds=0, jobs=2)
        records = check_all("torchvision", names, limits, pretend)
        found.update({record["name"]: record for record in records})
    assert {name: record["status"] for name, record in found.items()} == {
        "good": "verified",
        "dead": "wrong",
        "late": "timeout",
    }
    assert found["late"]["parameters"] == 7
    assert found["dead"]["reason"] == "in growth: the process ended with exit code 3"


def test_the_peer_is_asked_about_the_same_model() -> None:
    found = checking.check(subject_of(Small))
    assert ask_peer(subject_of(Small), found)["status"] == "ok"
    broken = checking.check(subject_of(Failing))
    assert ask_peer(subject_of(Failing), broken)["status"] == "not run"


def test_the_smallest_of_each_family_is_chosen() -> None:
    sizes = {"a1": 3, "a2": 2, "b": 1}
    assert smallest_of_each(list(sizes), sizes, {"a1": "a", "a2": "a", "b": "b"}) == ["b", "a2"]


def test_reasons_are_counted_without_what_is_special_about_a_model() -> None:
    one = "`layer1.0.conv`: `view` at torchvision/models/x.py:9 writes its size down (4, -1)"
    other = "`stem.conv`: `view` at timm/models/y.py:77 writes its size down (8, -1)"
    assert general(one) == general(other) == "`...`: `view` writes its size down (n, -n)"


def test_the_page_counts_every_model_once(tmp_path: Path) -> None:
    results = Results("timm", tmp_path)
    results.version, results.totals = "1", {"models": 9, "families": 3, "CNN classifiers": 2}
    for status in STATUSES:
        results.models[status] = record(status, status)
    results.models["verified"] |= {
        "kinds": {"Conv2d": [3, 4]},
        "modules": 5,
        "fixed": {"it is tied": 1},
        "seconds": {"analysis": 0.5},
        "peer": {"status": "ok", "seconds": 0.25},
        "tags": ["CNN classifiers"],
    }
    results.write()
    text = page([results])
    assert f"| models tried | {len(STATUSES)} of 9 | 1 |" in text
    assert "| grown and verified | 1 |  |" in text
    assert "that can grow | 3 of 5 (60.0%) |  |" in text
    assert "(1 models that both analysed) | 0.50 | 0.25 |" in text
    assert "| 1 of 2 (1 tried) | analysed: 1 |" in text
    assert "| 1 | it is tied |" in text
    for status in STATUSES.keys() - {"verified", "shapes verified"}:
        assert f"- **{status}**: {status}, you see: `{status}`" in text


def test_greedy_suppression_keeps_the_best_of_each_heap() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [0, 0, 2, 1.9], [3, 3, 4, 4], [0, 1.5, 2, 3.5]])
    scores = torch.tensor([0.5, 0.9, 0.1, 0.2])
    assert nms(boxes, scores, 0.5).tolist() == [1, 3, 2]
    assert nms(boxes, scores, 0.01).tolist() == [1, 2]
    assert nms(boxes[:0], scores[:0], 0.5).tolist() == []
