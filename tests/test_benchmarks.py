"""The speed harness: what it counts as broken, what it keeps, and that its claims still run."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from benchmarks.__main__ import main
from benchmarks.speed import results, tables
from benchmarks.speed.catalogue import CLAIMS
from benchmarks.speed.results import Entry, Measurement, Spread
from benchmarks.speed.settings import Settings
from benchmarks.speed.thresholds import Thresholds
from benchmarks.speed.timing import paired, ratio


def entry(*values: float, claim: str = "grown-inference", case: str = "a net") -> Entry:
    measurement = Measurement(case, "ratio", Spread.of(values), {"plain": "3.0 ms"})
    machine = {"device": "cpu", "cpu": "some", "threads": 2, "cores": 2, "torch": "2"}
    return Entry(claim, "How slow it is", "python -m x", "abc", machine, [measurement])


@pytest.mark.parametrize(
    ("value", "quick", "verdict"),
    [
        (1.0, False, "met"),
        (1.02, False, "in slack"),
        (1.1, False, "missed"),
        (1.2, False, "BROKEN"),
        (1.2, True, "met"),
        (9.0, True, "BROKEN"),
    ],
)
def test_a_median_above_target_and_slack_breaks_the_threshold(value, quick, verdict) -> None:
    content = {"grown-inference": {"target": 1.0, "slack": 0.03, "known": 1.15, "quick": 3.0}}
    thresholds = Thresholds(content)
    found = entry(value - 0.5, value, value + 0.5)
    threshold = thresholds.of("grown-inference", "a net")
    assert threshold.verdict(found.measurements[0], quick=quick) == verdict
    assert bool(thresholds.broken([found], quick=quick)) == (verdict == "BROKEN")


def test_a_case_may_have_a_threshold_of_its_own_and_others_none() -> None:
    thresholds = Thresholds({"x": {"cases": {"a": {"target": 1.0}}}})
    assert thresholds.broken([entry(2.0, claim="x", case="a")], quick=False) == ["x: a"]
    assert thresholds.broken([entry(2.0, claim="x", case="b")], quick=False) == []
    assert thresholds.broken([entry(2.0, claim="unknown")], quick=False) == []


def test_every_claim_has_a_threshold_and_every_threshold_a_claim() -> None:
    content = json.loads((Path(results.FOLDER).parent / "thresholds.json").read_text())
    assert content.keys() == {claim.name for claim in CLAIMS}


def test_contestants_take_turns_and_ratios_are_taken_in_each_round() -> None:
    calls: list[str] = []
    one, other = (lambda: calls.append("one")), (lambda: calls.append("other"))
    settings = Settings(quick=True, device="cpu", rounds=4, threads=torch.get_num_threads())
    times = paired({"one": one, "other": other}, settings)
    assert {name: len(found) for name, found in times.items()} == {"one": 4, "other": 4}
    changes = sum(a != b for a, b in pairwise(calls))
    assert changes >= 4
    assert ratio({"a": [1.0, 4.0, 9.0], "b": [1.0, 2.0, 3.0]}, "a", "b").median == 2.0


def test_results_come_back_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "speed-cpu.json"
    assert results.read(path) == {}
    results.write(path, [entry(1.0, 2.0, 3.0)])
    assert results.read(path) == {"grown-inference": entry(1.0, 2.0, 3.0)}


def test_the_page_gets_a_table_between_its_markers_and_nothing_else_changes(tmp_path) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- speed table -->\nold\n<!-- end -->\nafter\n")
    results.write(tmp_path / "speed-cpu.json", [entry(1.0, 1.01, 1.02)])
    tables.write_page(page, tmp_path)
    text = page.read_text()
    assert text.startswith("before\n<!-- speed table -->")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    assert re.search(r"a net \| 1\.010 \(1\.005 to 1\.015\) \| 1\.05 \| met", text)
    page.write_text("no markers")
    with pytest.raises(ValueError, match="has no <!-- speed table -->"):
        tables.write_page(page, tmp_path)


def test_the_committed_page_shows_the_committed_results(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(tables.PAGE.read_text())
    tables.write_page(page)
    assert page.read_text() == tables.PAGE.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--only", "nothing"], "not one of"), (["--rounds", "0"], "--rounds"), (["--x"], "No such")],
)
def test_bad_options_are_refused(arguments: list[str], message: str) -> None:
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 2
    assert message in found.output


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated")  # torch's own fusion imports it
@pytest.mark.skipif(find_spec("torchvision") is None, reason="needs torchvision")
@pytest.mark.slow
@pytest.mark.zoo
def test_claims_run_in_quick_mode(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    chosen = ("fused-inference", "training-frozen-12", "growth-memory", "growth-time")
    chosen += ("shared-kernel",)
    arguments = [part for name in chosen for part in ("--only", name)]
    threads = str(torch.get_num_threads())
    options = ["--quick", "--rounds", "1", "--threads", threads, "--json", str(path)]
    found = CliRunner().invoke(main, [*arguments, *options])
    assert found.exit_code == 0, found.output
    assert set(results.read(path)) == set(chosen)
