"""The language benchmark: what it compares ends at equal sizes, and its files survive a stop."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from rich.console import Console

import splitgrow
from benchmarks.language import __main__ as command
from benchmarks.language.results import best, read_runs, share_to, table, write_page, write_picture
from benchmarks.language.training import (
    GPT,
    WAYS,
    Run,
    Settings,
    Training,
    grow_depth,
    grow_widths,
    multiply_adds,
)
from benchmarks.page import PAGE
from benchmarks.runs import FOLDER

SMALL = Settings(
    small=(32, 1, 16, 1),
    large=(64, 2, 32, 2),
    context=8,
    batch=2,
    steps=45,
    rates=(1e-3,),
    tested=1,
)
DATA = (torch.arange(4000) % 256, torch.arange(1000) % 256)
SILENT = Console(file=io.StringIO())


def run(way: str, rate: float, seed: int, *losses: float) -> Run:
    curve = tuple((float(n), loss) for n, loss in enumerate(losses))
    return Run(way, seed, rate, 2.0, curve)


def test_a_grown_network_ends_at_the_large_ones_sizes() -> None:
    torch.manual_seed(0)
    probe = DATA[1][:16].view(2, 8)
    model: Any = splitgrow.growable(GPT(SMALL.small, SMALL.context), probe)
    before = model(probe)
    optimizer = torch.optim.AdamW(model.parameters())
    grow_widths(model, SMALL, optimizer)
    grow_depth(model, SMALL, optimizer)
    assert (model(probe) - before).abs().max() < 1e-5
    plain, large = splitgrow.merge(model), GPT(SMALL.large, SMALL.context)
    shapes = [tuple(p.shape) for p in plain.parameters()]
    assert sorted(shapes) == sorted(tuple(p.shape) for p in large.parameters())


@pytest.mark.parametrize("way", WAYS)
def test_each_way_gets_the_large_networks_multiply_adds(way: str) -> None:
    shares: list[float] = []
    found = Training(way, 0, 1e-3, SMALL, DATA, shares.append).run()
    large = multiply_adds(GPT(SMALL.large, SMALL.context), DATA[1][:16].view(2, 8))
    assert found.curve[-1][0] == pytest.approx(SMALL.steps * large, rel=0.1)
    assert len(found.curve) == 21
    assert shares == sorted(shares)
    assert shares[-1] >= 1
    assert found.moved < 1e-5
    assert (found.moved > 0) == (way == "grown")


def test_a_run_depends_on_its_seed_alone() -> None:
    one, two, other = (Training("small", seed, 1e-3, SMALL, DATA).run() for seed in (0, 0, 1))
    assert one.curve == two.curve
    assert one.curve != other.curve


def test_what_a_stopped_comparison_has_done_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int]] = []

    def stopped(self: Training) -> Run:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append((self.way, self.seed))
        return run(self.way, self.rate, self.seed, 3.0, 2.0)

    monkeypatch.setattr(command, "text", lambda: DATA)
    path = tmp_path / "language.json"
    with monkeypatch.context() as patched:
        patched.setattr(Training, "run", stopped)
        with pytest.raises(KeyboardInterrupt):
            command.measure(SMALL, 1, path, SILENT)
    assert [each.way for each in read_runs(path, SMALL)] == ["large", "grown"]
    monkeypatch.setattr(Training, "run", lambda self: run(self.way, self.rate, self.seed, 3.0, 1.0))
    command.measure(SMALL, 1, path, SILENT)
    assert [each.loss for each in read_runs(path, SMALL)] == [2.0, 2.0, 1.0]
    assert read_runs(path, replace(SMALL, steps=46)) == []


def test_the_best_rate_is_that_of_the_lowest_mean_loss() -> None:
    runs = [run("large", 1e-3, s, 4.0, 3.0 - s) for s in (1, 0)]
    runs += [run("large", 3e-3, s, 4.0, 2.8) for s in (0, 1)]
    assert [(each.rate, each.seed) for each in best(runs, "large")] == [(1e-3, 0), (1e-3, 1)]
    assert best(runs, "small") == []


def test_the_table_says_when_a_way_is_as_good_as_the_large_network_and_when_never() -> None:
    runs = [run("large", 1e-3, 0, 4.0, 3.0, 2.0), run("small", 1e-3, 0, 4.0, 3.0, 2.5)]
    runs.append(run("grown", 1e-3, 0, 4.0, 2.0, 1.5))
    assert share_to(runs[2], 2.0) == 0.5
    lines = table(runs).splitlines()
    assert "| 50% |" in next(line for line in lines if line.startswith("| grown"))
    assert "| never |" in next(line for line in lines if line.startswith("| small"))


def test_the_page_shows_the_committed_comparison(tmp_path: Path) -> None:
    page, results = tmp_path / "page.md", tmp_path / "language.json"
    page.write_text(PAGE.read_text())
    results.write_text((FOLDER / "language.json").read_text())
    write_page(page, results)
    assert page.read_text() == PAGE.read_text()
    content = json.loads(results.read_text())
    ways = {(each["way"], each["seed"]) for each in content["runs"]}
    assert ways == {(way, seed) for way in WAYS for seed in range(3)}
    write_picture(results)
    assert results.with_suffix(".png").stat().st_size > 10_000


def test_control_a_page_without_the_place_for_it_is_left_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(ValueError, match="language table"):
        write_page(page, FOLDER / "language.json")
    assert page.read_text() == "nothing"


def test_the_page_needs_results(tmp_path: Path) -> None:
    call = ["--page", "--json", str(tmp_path / "none.json")]
    found = CliRunner().invoke(command.main, call)
    assert found.exit_code == 2
    assert "run without --page first" in found.output
