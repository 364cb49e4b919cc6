"""The speed harness: its checks for failures, the data it keeps, and its claims, run again."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from benchmarks.__main__ import main
from benchmarks.page import PAGE
from benchmarks.progressive import training as progressive
from benchmarks.progressive.__main__ import main as compare
from benchmarks.progressive.results import write_page
from benchmarks.runs import FOLDER
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
    page.write_text(PAGE.read_text())
    tables.write_page(page)
    assert page.read_text() == PAGE.read_text()


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
    assert found.exception is None or isinstance(found.exception, SystemExit), found.output
    entries = results.read(path)
    assert set(entries) == set(chosen)
    # Others may use the machine, too: no test is decided by a time. Memory can be relied on.
    broken = Thresholds.read().broken(entries.values(), quick=True)
    assert found.exit_code == bool(broken), found.output
    assert not [name for name in broken if name.startswith("growth-memory")]


# -- the runs of benchmarks/progressive ------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A few pictures of noise, in two classes."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 14)):
        for index in range(count):
            folder = tmp_path / "pictures" / split / "ab"[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = noise.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "pictures"


def grown_and_not(pictures: Path, path: Path, *options: str):
    threads = str(torch.get_num_threads())
    arguments = ["--data", str(pictures), "--json", str(path), "--threads", threads, *options]
    return CliRunner().invoke(compare, arguments)


def test_both_ways_spend_the_same_and_end_as_the_same_network() -> None:
    settings = progressive.Settings(budget=6.0)
    data = torch.rand(40, 3, 32, 32), torch.rand(6, 3, 32, 32)
    trained = []
    for way in progressive.WAYS:
        assert sum(phase.share for phase in progressive.phases(way, settings)) == pytest.approx(1)
        training = progressive.Training(way, 0, data, settings)
        run = training.run(lambda _: None)
        assert training.spent == pytest.approx(settings.budget, rel=0.2)
        assert run.error > 0
        trained.append(training.model)
    shapes = [{n: p.shape for n, p in model.named_parameters()} for model in trained]
    assert shapes[0] == shapes[1] == shapes[2]
    sizes = [progressive.multiply_adds(trained[0], torch.rand(n, 3, 32, 32)) for n in (1, 3)]
    assert sizes[1] == pytest.approx(3 * sizes[0])


def test_an_interrupted_comparison_keeps_what_was_done_and_goes_on(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "found.json"
    run, made = progressive.Training.run, []

    def stopped(training: progressive.Training, watch) -> progressive.Run:
        made.append(training.way)
        if len(made) == 2:
            raise KeyboardInterrupt
        return run(training, watch)

    monkeypatch.setattr(progressive.Training, "run", stopped)
    options = ("--budget", "0.5", "--images", "8", "--seeds", "1")
    found = grown_and_not(pictures, path, *options)
    assert found.exit_code == 0, found.output
    assert "Stopped" in found.output
    assert [run["way"] for run in json.loads(path.read_text())["runs"]] == ["from the start"]
    found = grown_and_not(pictures, path, *options)
    assert found.exit_code == 0, found.output
    assert made == ["from the start", *progressive.WAYS[1:2] * 2, progressive.WAYS[2]]
    assert "grown / from" in found.output
    found = grown_and_not(pictures, path, "--budget", "0.6", "--images", "8", "--seeds", "1")
    assert len(made) == 7  # other settings, so all anew
    assert path.with_suffix(".png").exists()


def test_pictures_must_be_named() -> None:
    assert "--data is missing" in CliRunner().invoke(compare, []).output


def test_the_page_shows_the_committed_comparison(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text(PAGE.read_text())
    write_page(page, FOLDER / "progressive.json")
    assert page.read_text() == PAGE.read_text()
    page.write_text("no markers")
    with pytest.raises(ValueError, match="has no <!-- progressive table -->"):
        write_page(page, FOLDER / "progressive.json")
